package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// plant puts a text of its own into every string there is in v, keys of maps
// too, and a number into every number.
func plant(v reflect.Value, path string, depth int) {
	if depth > 12 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("canary:" + path + ";")
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		plant(v.Elem(), path, depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		plant(v.Index(0), path+"[]", depth+1)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		plant(key, path+".KEY", depth+1)
		plant(value, path+"{}", depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() {
				continue
			}
			name := strings.TrimPrefix(path+"."+f.Name, ".")
			if f.Anonymous {
				name = path
			}
			plant(v.Field(i), name, depth+1)
		}
	}
}

var canary = regexp.MustCompile(`canary:[^;]*;`)

// canaries are the texts that came out, as paths into the SDK's struct.
func canaries(t *testing.T, m proto.Message) []string {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, c := range canary.FindAllString(string(b), -1) {
		found[strings.TrimSuffix(strings.TrimPrefix(c, "canary:"), ";")] = true
	}
	return slices.Sorted(maps.Keys(found))
}

func wantOut(t *testing.T, m proto.Message, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := canaries(t, m); !slices.Equal(got, want) {
		t.Errorf("came out: %q\nmay come out: %q", got, want)
	}
}

// TestOnlyTheseFieldsComeOut defends what the engine knows and callers may not:
// arguments, environment, labels, health output, host paths. Whatever a new SDK
// brings stays inside until it is listed here.
func TestOnlyTheseFieldsComeOut(t *testing.T) {
	labels := converter{labels: map[string]bool{"canary:Labels.KEY;": true, "canary:Config.Labels.KEY;": true}}
	listFields := []string{"Names[]", "ID", "Image", "ImageID", "State", "Ports[].IP", "Ports[].Type"}
	inspectFields := []string{
		"ID", "Name", "Image", "Config.Image", "State.Status", "HostConfig.RestartPolicy.Name", "Config.Env[]",
		"NetworkSettings.Ports{}[].HostIP", "NetworkSettings.Networks.KEY", "NetworkSettings.Networks{}.IPAddress",
		"NetworkSettings.Networks{}.GlobalIPv6Address", "NetworkSettings.Networks{}.MacAddress", "Mounts[].Type", "Mounts[].Destination",
	}
	var summary container.Summary
	plant(reflect.ValueOf(&summary).Elem(), "", 0)
	if summary.Command == "" || len(summary.Labels) != 1 {
		t.Fatal("nothing was planted")
	}
	t.Run("list", func(t *testing.T) {
		wantOut(t, converter{}.list([]container.Summary{summary})[0].Value, listFields...)
		wantOut(t, labels.list([]container.Summary{summary})[0].Value, append(slices.Clone(listFields), "Labels.KEY", "Labels{}")...)
	})
	inspect := func(c converter, edit func(*container.InspectResponse)) *brokerv1.InspectContainerResponse {
		t.Helper()
		var in container.InspectResponse
		plant(reflect.ValueOf(&in).Elem(), "", 0)
		if in.Path == "" || len(in.Config.Cmd) != 1 || in.State.Health.Log[0].Output == "" || in.HostConfig.Binds == nil {
			t.Fatal("nothing was planted")
		}
		if edit != nil {
			edit(&in)
		}
		got, err := c.inspect(in)
		if err != nil {
			t.Fatal(err)
		}
		return got.view
	}
	t.Run("inspect", func(t *testing.T) {
		wantOut(t, inspect(converter{}, nil), append(slices.Clone(inspectFields), "Mounts[].Name")...)
		wantOut(t, inspect(labels, nil), append(slices.Clone(inspectFields), "Mounts[].Name", "Config.Labels.KEY", "Config.Labels{}")...)
		wantOut(t, inspect(converter{}, func(in *container.InspectResponse) { in.Mounts[0].Name = "" }), append(slices.Clone(inspectFields), "Mounts[].Source")...)
	})
	t.Run("environment values", func(t *testing.T) {
		view := inspect(converter{}, func(in *container.InspectResponse) {
			in.Config.Env = []string{"B=canary:value;", "A=x=canary:value;", "EMPTY=", "NOSIGN", "B=canary:again;", "=canary:odd;"}
		})
		wantOut(t, view, append(slices.DeleteFunc(slices.Clone(inspectFields), func(s string) bool { return s == "Config.Env[]" }), "Mounts[].Name")...)
		if got := view.GetEnvironmentKeys(); !slices.Equal(got, []string{"", "A", "B", "EMPTY", "NOSIGN"}) {
			t.Errorf("keys %q", got)
		}
	})
	t.Run("stats", func(t *testing.T) {
		var s container.StatsResponse
		plant(reflect.ValueOf(&s).Elem(), "", 0)
		wantOut(t, sampleOf(&s))
	})
}

// TestMountSourcesNeedAsking: the host's paths come out of the service only for
// who asked, which is what needs the permission.
func TestMountSourcesNeedAsking(t *testing.T) {
	var in container.InspectResponse
	plant(reflect.ValueOf(&in).Elem(), "", 0)
	in.Name = "/web"
	s := service(func(e *engine) {
		e.inspect = func(context.Context, string) (*inspected, error) { return converter{}.inspect(in) }
		e.image = func(context.Context, string) (*localImage, error) {
			return &localImage{digests: []string{"web@sha256:1"}}, nil
		}
	})
	for _, ask := range []bool{false, true} {
		view, err := s.InspectContainer(t.Context(), &brokerv1.InspectContainerRequest{Container: "web", IncludeMountSources: ask})
		if err != nil {
			t.Fatal(err)
		}
		if out := view.GetMounts()[0].GetSource() != ""; out != ask {
			t.Errorf("asked %v, got %q", ask, view.GetMounts()[0].GetSource())
		}
		if view.GetMounts()[0].GetDestination() == "" || len(view.GetImageDigests()) != 1 {
			t.Errorf("view %v", view)
		}
	}
}

func TestListConverts(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	got := converter{labels: map[string]bool{"ok": true}}.list([]container.Summary{
		{ID: id("a"), Names: []string{"/web"}, State: "running", Status: "Up 3 minutes (healthy)", Created: 10, Labels: map[string]string{"ok": "x\xff", "no": "y"}},
		{ID: id("c"), Names: []string{"/proxy/backend", "/db", "/other/db"}, State: "exited", Status: "Exited (0) 2 minutes ago", Created: 20},
		{ID: id("b"), Names: []string{"/cache"}, State: "running", Status: "Up 2 seconds (health: starting)", Created: 20},
		{ID: id("d"), Names: []string{"/hibernating"}, State: "hibernated", Status: "Hibernated", Created: 5},
		{ID: id("e"), Names: []string{"/sick"}, State: "running", Status: "Up 2 hours (unhealthy)", Created: 4},
		{ID: id("f"), Names: []string{"/plain"}, State: "running", Status: "Up 2 hours", Created: 3},
		{ID: id("0"), Names: nil, State: "created", Created: 2},
		{ID: id("1"), Names: []string{"/only/alias"}, State: "created", Created: 1},
	})
	var lines []string
	for _, k := range got {
		c := k.Value
		lines = append(lines, fmt.Sprint(c.GetName(), " ", c.GetId()[:1], " ", strings.TrimPrefix(c.GetState().String(), "CONTAINER_STATE_"), " ", c.GetStateText(), " ",
			strings.TrimPrefix(c.GetHealth().String(), "CONTAINER_HEALTH_")))
	}
	want := []string{
		"cache b RUNNING running STARTING", "db c EXITED exited UNSPECIFIED", "web a RUNNING running HEALTHY",
		"hibernating d UNSPECIFIED hibernated UNSPECIFIED", "sick e RUNNING running UNHEALTHY", "plain f RUNNING running NONE",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
	if l := got[2].Value.GetLabels(); len(l) != 1 || l["ok"] != "x\uFFFD" {
		t.Errorf("labels %q", l)
	}
	for state, want := range states {
		if stateOf(state) != want || want == 0 || "CONTAINER_STATE_"+strings.ToUpper(state) != want.String() {
			t.Errorf("%s is %v", state, want)
		}
	}
	for health, want := range healths {
		if "CONTAINER_HEALTH_"+strings.ToUpper(health) != want.String() {
			t.Errorf("%s is %v", health, want)
		}
	}
}

func TestInspectIsSorted(t *testing.T) {
	text := `{"Id":"` + someID + `","Name":"/web","State":{"Status":"running","StartedAt":"2026-01-02T03:04:05.5Z","FinishedAt":"0001-01-01T00:00:00Z"},
		"HostConfig":{"CpuPeriod":100000,"CpuQuota":150000,"PidsLimit":-1},"Config":{},
		"NetworkSettings":{"Ports":{"443/tcp":null,"80/udp":[{"HostIp":"0.0.0.0","HostPort":"81"}],"80/tcp":[{"HostIp":"::","HostPort":"80"},{"HostIp":"0.0.0.0","HostPort":"8081"},{"HostIp":"0.0.0.0","HostPort":"8080"}],
			"9/tcp":[{"HostIp":"","HostPort":"junk"}]},
			"Networks":{"b":{"IPAddress":"198.18.0.2"},"a":{"IPAddress":"198.18.0.1"},"none":null}},
		"Mounts":[{"Type":"bind","Source":"/srv","Destination":"/z","RW":true},{"Type":"volume","Name":"data","Source":"/var/lib/docker/volumes/data/_data","Destination":"/a","RW":false}]}`
	var in container.InspectResponse
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	for range 50 { // Maps have another order each time.
		got, err := converter{}.inspect(in)
		if err != nil {
			t.Fatal(err)
		}
		v := got.view
		var ports, networks, mounts []string
		for _, p := range v.GetContainer().GetPorts() {
			ports = append(ports, fmt.Sprintf("%s:%d:%d/%s", p.GetHostIp(), p.GetHostPort(), p.GetContainerPort(), p.GetProtocol()))
		}
		for _, n := range v.GetNetworks() {
			networks = append(networks, n.GetNetwork()+"="+n.GetIpv4Address())
		}
		for _, m := range v.GetMounts() {
			mounts = append(mounts, fmt.Sprint(m.GetType(), " ", m.GetSource(), " ", m.GetDestination(), " ", m.GetReadOnly()))
		}
		if s := strings.Join(ports, " "); s != ":0:9/tcp 0.0.0.0:8080:80/tcp 0.0.0.0:8081:80/tcp :::80:80/tcp 0.0.0.0:81:80/udp :0:443/tcp" {
			t.Fatalf("ports %s", s)
		}
		if s := strings.Join(networks, " "); s != "a=198.18.0.1 b=198.18.0.2" {
			t.Fatalf("networks %s", s)
		}
		if s := strings.Join(mounts, ", "); s != "volume data /a true, bind /srv /z false" {
			t.Fatalf("mounts %s", s)
		}
		if v.GetStartTime().AsTime() != time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC) || v.GetFinishTime() != nil || v.GetLimits().GetNanoCpus() != 15e8 || v.GetLimits().GetPids() != 0 {
			t.Fatalf("view %v", v)
		}
	}
}

// TestManyPortsOfOneAddress: over a dozen, sorting keeps no order that it is not
// told to.
func TestManyPortsOfOneAddress(t *testing.T) {
	var bindings []string
	for i := range 40 {
		bindings = append(bindings, fmt.Sprintf(`{"HostIp":"0.0.0.0","HostPort":"%d"}`, 9000+(i*17)%40))
	}
	text := `{"Id":"x","Name":"/web","State":{},"HostConfig":{},"Config":{},"NetworkSettings":{"Ports":{"80/tcp":[` + strings.Join(bindings, ",") + `],"81/tcp":null}}}`
	var in container.InspectResponse
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	got, err := converter{}.inspect(in)
	if err != nil {
		t.Fatal(err)
	}
	ports := got.view.GetContainer().GetPorts()
	if len(ports) != 41 || !slices.IsSortedFunc(ports[:40], func(a, b *brokerv1.Port) int { return int(a.GetHostPort()) - int(b.GetHostPort()) }) {
		t.Errorf("ports %v", ports)
	}
}

func TestIncompleteInspect(t *testing.T) {
	for _, text := range []string{
		`{}`, `null`, `{"Id":"x","State":null,"HostConfig":{},"Config":{},"NetworkSettings":{}}`, `{"Id":"x","State":{},"HostConfig":null,"Config":{},"NetworkSettings":{}}`,
		`{"Id":"x","State":{},"HostConfig":{},"NetworkSettings":{}}`, `{"Id":"x","State":{},"HostConfig":{},"Config":{}}`,
	} {
		var in container.InspectResponse
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if _, err := (converter{}).inspect(in); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func TestStats(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want *brokerv1.ContainerStatsResponse
	}{
		"cgroup v1": {
			`{"read":"2026-01-02T03:04:05Z","pids_stats":{"current":3},
			"blkio_stats":{"io_service_bytes_recursive":[]},
			"cpu_stats":{"cpu_usage":{"total_usage":3000,"percpu_usage":[1000,1000,500,500]},"system_cpu_usage":20000},
			"precpu_stats":{"cpu_usage":{"total_usage":1000},"system_cpu_usage":10000},
			"memory_stats":{"usage":1000,"limit":4000,"stats":{"total_inactive_file":300,"inactive_file":100,"cache":700}},
			"networks":{"eth0":{"rx_bytes":1,"tx_bytes":2},"eth1":{"rx_bytes":10,"tx_bytes":20}}}`,
			&brokerv1.ContainerStatsResponse{CpuPercent: 80, OnlineCpus: 4, MemoryBytes: 700, MemoryLimitBytes: 4000, Pids: 3, NetworkReceiveBytes: 11, NetworkTransmitBytes: 22},
		},
		"cgroup v1 with block devices": {
			`{"blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":5},{"op":"Write","value":6},{"op":"Sync","value":7},{"op":"Total","value":11},{"op":"Read","value":1}]}}`,
			&brokerv1.ContainerStatsResponse{BlockReadBytes: 6, BlockWriteBytes: 6},
		},
		"cgroup v2": {
			`{"read":"2026-01-02T03:04:05Z","pids_stats":{"current":3},
			"blkio_stats":{"io_service_bytes_recursive":[{"major":8,"op":"read","value":5},{"major":8,"op":"write","value":6}]},
			"cpu_stats":{"cpu_usage":{"total_usage":11000},"system_cpu_usage":20000,"online_cpus":2},
			"precpu_stats":{"cpu_usage":{"total_usage":1000},"system_cpu_usage":10000,"online_cpus":2},
			"memory_stats":{"usage":1000,"limit":4000,"stats":{"inactive_file":100}}}`,
			&brokerv1.ContainerStatsResponse{CpuPercent: 200, OnlineCpus: 2, MemoryBytes: 900, MemoryLimitBytes: 4000, Pids: 3, BlockReadBytes: 5, BlockWriteBytes: 6},
		},
		"first sample": {
			`{"cpu_stats":{"cpu_usage":{"total_usage":11000},"system_cpu_usage":20000,"online_cpus":2},"precpu_stats":{}}`,
			&brokerv1.ContainerStatsResponse{OnlineCpus: 2},
		},
		"counters went back": {
			`{"cpu_stats":{"cpu_usage":{"total_usage":1},"system_cpu_usage":20000,"online_cpus":2},"precpu_stats":{"cpu_usage":{"total_usage":9},"system_cpu_usage":10000}}`,
			&brokerv1.ContainerStatsResponse{OnlineCpus: 2},
		},
		"more cache than use": {`{"memory_stats":{"usage":10,"stats":{"inactive_file":10}}}`, &brokerv1.ContainerStatsResponse{MemoryBytes: 10}},
		"stopped":             {`{}`, &brokerv1.ContainerStatsResponse{}},
	} {
		t.Run(name, func(t *testing.T) {
			all := converter{}.stats(io.NopCloser(strings.NewReader(c.text + c.text)))
			for range 2 {
				got, err := all.next()
				if err != nil {
					t.Fatal(err)
				}
				got.SampleTime = nil
				if math.Abs(got.CpuPercent-c.want.CpuPercent) > 1e-9 {
					t.Errorf("%v percent, want %v", got.CpuPercent, c.want.CpuPercent)
				}
				got.CpuPercent, c.want.CpuPercent = 0, 0
				if !proto.Equal(got, c.want) {
					t.Errorf("got  %v\nwant %v", got, c.want)
				}
				c.want.CpuPercent = map[string]float64{"cgroup v1": 80, "cgroup v2": 200}[name]
			}
			if _, err := all.next(); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}
