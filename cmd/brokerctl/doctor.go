package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/client"
)

// How far the clocks may be apart: certificates are checked against them.
const (
	clockWarn = 5 * time.Second
	clockFail = 60 * time.Second
)

// expiryWarn is when a certificate should have been renewed.
const expiryWarn = time.Hour

// grade is the outcome of one check.
type grade string

const (
	gradeOK   grade = "OK"
	gradeWarn grade = "WARN"
	gradeFail grade = "FAIL"
)

// finding is one line of the doctor's.
type finding struct {
	Grade grade  `json:"grade"`
	Check string `json:"check"`
	What  string `json:"what"`
	Do    string `json:"do,omitempty"`
}

// examination collects findings.
type examination struct{ findings []finding }

func (e *examination) note(g grade, check, do, format string, args ...any) {
	e.findings = append(e.findings, finding{Grade: g, Check: check, What: fmt.Sprintf(format, args...), Do: do})
}

// refused notes an error as a failure.
func (e *examination) refused(check string, err error) {
	_, why, hint := classify(err)
	e.note(gradeFail, check, hint, "%s", why)
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check the way to the broker, step by step",
		Long: `Check the way to the broker, step by step: configuration, key, certificate,
connection, the broker's identity, clock, engine, the part that reads the host's
own state, grants, freeze. The exit code is 0 when nothing failed; warnings do not
count.`,
		Example: "  brokerctl doctor\n  brokerctl doctor --context spire -o json",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			e := &examination{}
			if t, ok := a.examineConfig(e); ok {
				a.examineFiles(e, t)
				a.examineBroker(ctx, e, t)
			}
			if err := a.show(view{value: e.findings, text: func(w io.Writer, _ bool) error { return a.printFindings(w, e.findings) }}); err != nil {
				return err
			}
			for _, f := range e.findings {
				if f.Grade == gradeFail {
					return silent(exitFailure)
				}
			}
			return nil
		}),
	}
}

func (a *app) printFindings(w io.Writer, all []finding) error {
	colours := map[grade]colour{gradeOK: green, gradeWarn: yellow, gradeFail: red}
	t := a.newTable()
	for _, f := range all {
		what := f.What
		if f.Do != "" {
			what += "; " + f.Do
		}
		t.addCells(cell{string(f.Grade), colours[f.Grade]}, cell{f.Check, plain}, cell{what, plain})
	}
	return t.write(w)
}

func (a *app) examineConfig(e *examination) (target, bool) {
	t, err := a.resolve()
	if err != nil {
		e.refused("configuration", err)
		return t, false
	}
	path := a.configPath()
	info, err := os.Stat(path)
	switch {
	case err != nil:
		e.note(gradeOK, "configuration", "", "from variables and flags, broker at %s", t.Address)
	case info.Mode().Perm()&0o022 != 0:
		e.note(gradeWarn, "configuration", "chmod go-w "+path, "%s can be written by others, who could name another broker", path)
	default:
		e.note(gradeOK, "configuration", "", "context %q of %s, broker at %s", t.context, path, t.Address)
	}
	return t, true
}

func (a *app) examineFiles(e *examination, t target) {
	if t.WorkloadAPI != "" {
		e.note(gradeOK, "certificate", "", "from the Workload API at %s", t.WorkloadAPI)
		return
	}
	switch info, err := os.Stat(t.Key); {
	case err != nil:
		e.note(gradeFail, "key", "correct the path, or issue a certificate", "%v", err)
	case info.Mode().Perm()&0o077 != 0:
		e.note(gradeFail, "key", "chmod 600 "+t.Key+", and renew it: it may be known", "%s can be read by others (mode %04o)", t.Key, info.Mode().Perm())
	default:
		e.note(gradeOK, "key", "", "%s is readable by its owner only", t.Key)
	}
	info, err := certs.Show(t.Cert)
	switch {
	case err != nil:
		e.note(gradeFail, "certificate", "correct the path, or issue a certificate", "%v", err)
	case info.Remaining <= 0:
		e.note(gradeFail, "certificate", "brokerctl certs renew "+t.Cert+", on the authority's host", "expired %s ago", shortDuration(-info.Remaining.Truncate(time.Second)))
	case time.Now().Before(info.NotBefore):
		e.note(gradeFail, "certificate", "check this host's clock", "not valid before %s", info.NotBefore.Local().Format(time.RFC3339))
	case info.Remaining < expiryWarn:
		e.note(gradeWarn, "certificate", "see why it was not renewed", "%s expires in %s", info.ID, shortDuration(info.Remaining.Truncate(time.Second)))
	default:
		e.note(gradeOK, "certificate", "", "%s, valid for %s", info.ID, shortDuration(info.Remaining.Truncate(time.Second)))
	}
}

func (a *app) examineBroker(ctx context.Context, e *examination, t target) {
	c, err := a.client(ctx)
	if err != nil {
		e.refused("connection", err)
		return
	}
	ctx, cancel := a.deadline(ctx, 0)
	defer cancel()
	// The first call makes the connection, and takes as long as that; the clock
	// needs a second one.
	me, err := c.Broker().WhoAmI(ctx, &brokerv1.WhoAmIRequest{})
	if err != nil {
		e.refused("connection", err)
		return
	}
	e.note(gradeOK, "connection", "", "mutual TLS with %s", t.ServerID)
	asked := time.Now()
	version, err := c.Broker().GetVersion(ctx, &brokerv1.GetVersionRequest{})
	if err != nil {
		e.refused("version", err)
	} else {
		examineClock(e, version.GetServerTime().AsTime(), asked, time.Now())
		if version.GetEngineAvailable() {
			e.note(gradeOK, "engine", "", "answers, API %s", version.GetEngineApiVersion())
		} else {
			e.note(gradeFail, "engine", "start it; the broker recovers by itself", "the container engine does not answer")
		}
	}
	examineHost(ctx, e, c)
	if n := len(me.GetGrants()); n == 0 {
		e.note(gradeFail, "policy", "ask the operator for grants", "%s has no grants", me.GetSpiffeId())
	} else {
		e.note(gradeOK, "policy", "", "%s has %d grants and %d denials", me.GetSpiffeId(), n, len(me.GetDenials()))
	}
	if f := me.GetFreeze(); f != nil {
		e.note(gradeWarn, "freeze", "brokerctl unfreeze ends it", "%s", freezeText(f))
	} else {
		e.note(gradeOK, "freeze", "", "not frozen")
	}
}

// hostService is what the health service calls whatever needs brokerhost.
const hostService = "hermes.host.v1.HostService"

// examineHost asks the health service, which is for those with broker.health, about
// what older brokers do not have.
func examineHost(ctx context.Context, e *examination, c *client.Client) {
	resp, err := c.Health().Check(ctx, &healthpb.HealthCheckRequest{Service: hostService})
	switch status.Code(err) {
	case codes.OK:
	case codes.PermissionDenied, codes.NotFound, codes.Unimplemented:
		return
	default:
		e.refused("host", err)
		return
	}
	if resp.GetStatus() == healthpb.HealthCheckResponse_SERVING {
		e.note(gradeOK, "host", "", "brokerhost answers")
	} else {
		e.note(gradeWarn, "host", "start it; the broker recovers by itself", "the host's own state: brokerhost does not answer")
	}
}

// examineClock compares the broker's clock with the middle of the call.
func examineClock(e *examination, server, asked, answered time.Time) {
	apart := server.Sub(asked.Add(answered.Sub(asked) / 2)).Round(time.Millisecond)
	text := shortDuration(apart.Abs()) + " behind"
	if apart > 0 {
		text = shortDuration(apart) + " ahead"
	}
	const do = "set both clocks by NTP: certificates are judged by them"
	switch {
	case apart.Abs() > clockFail:
		e.note(gradeFail, "clock", do, "the broker is %s", text)
	case apart.Abs() > clockWarn:
		e.note(gradeWarn, "clock", do, "the broker is %s", text)
	default:
		e.note(gradeOK, "clock", "", "within %s of the broker's", clockWarn)
	}
}
