package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestTwoPullOne: who asks for a reference that is being pulled joins in.
func TestTwoPullOne(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	one, two := b.dial("hermes"), b.dial("ada")
	for _, tc := range []struct {
		name    string
		leavers int // How many of the two leave before the layer comes.
	}{{"both stay", 0}, {"one leaves", 1}, {"both leave", 2}} {
		t.Run(tc.name, func(t *testing.T) {
			r.Reset()
			image := push(t, r, "team/app:1", testhost.RandomLayer(100<<10))
			held := holdLayers(t, r, image)
			type puller struct {
				c      *client.Client
				stream pullStream
				first  *brokerv1.PullResponse
			}
			pullers := []puller{{c: one}, {c: two}}
			for i := range pullers {
				p := &pullers[i]
				p.stream, p.first = begin(t, within(t), p.c, &brokerv1.PullRequest{Image: r.Addr + "/team/app:1"})
				held.wait(t)
			}
			if pullers[0].first.GetOperation().GetName() == pullers[1].first.GetOperation().GetName() {
				t.Error("two callers have one operation")
			}
			for _, p := range pullers[:tc.leavers] {
				name := p.first.GetOperation().GetName()
				cancelled, err := p.c.Operations().CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name})
				if err != nil || cancelled.GetOperation().GetState() != brokerv1.OperationState_OPERATION_STATE_CANCELLED {
					t.Errorf("cancel: %v, %v", cancelled, err)
				}
				_, _, err = finish(t, p.stream, p.first)
				want(t, err, brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED)
				if client.ErrorMetadata(err)["operation"] != name {
					t.Errorf("metadata %v of %s", client.ErrorMetadata(err), name)
				}
				again, err := p.c.Operations().CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name})
				if err != nil || !proto.Equal(again.GetOperation(), cancelled.GetOperation()) {
					t.Errorf("cancel again: %v, %v", again, err)
				}
			}
			held.release()
			for _, p := range pullers[tc.leavers:] {
				if result, _, err := finish(t, p.stream, p.first); err != nil || result.GetDigest() != image.Digest || result.GetTag() != brokerv1.PulledTag_PULLED_TAG_SET {
					t.Errorf("who stayed: %v, %v", result, err)
				}
			}
			if n := fetched(r, image); n != 1 {
				t.Errorf("the layer was fetched %d times", n)
			}
			if tc.leavers < 2 {
				return
			}
			time.Sleep(300 * time.Millisecond) // An engine that went on would have it by now.
			for _, i := range present(t, r.Addr) {
				if i.ID == image.ID {
					t.Errorf("all have left, and the engine has %+v", i)
				}
			}
			if result, _, err := pull(t, one, r.Addr+"/team/app:1"); err != nil || result.GetDigest() != image.Digest {
				t.Errorf("the next pull: %v, %v", result, err)
			}
		})
	}
}

// TestDetached: work that was detached goes on without its caller, and whoever
// comes back misses nothing and gets nothing twice.
func TestDetached(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	image := push(t, r, "team/app:1", testhost.RandomLayer(3<<20))
	r.Intercept(throttled(image, 2<<20))
	req := &brokerv1.PullRequest{Image: r.Addr + "/team/app:1", Detach: true, RequestId: client.NewRequestID()}

	caller := b.dial("hermes")
	s, err := caller.Images().Pull(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	begun, err := receive(s)
	if err != nil || len(begun) != 1 || !begun[0].GetOperation().GetDetached() {
		t.Fatalf("detached: %v, %v", begun, err)
	}
	name := begun[0].GetOperation().GetName()
	w, err := caller.Operations().WatchOperation(within(t), &brokerv1.WatchOperationRequest{Name: name})
	var seen []*brokerv1.PullResponse
	for len(seen) < 3 && err == nil {
		var m *brokerv1.WatchOperationResponse
		if m, err = w.Recv(); err == nil {
			seen = append(seen, m.GetEvent().GetPull())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	caller.Close() // Cuts the connection in the middle.

	c := b.dial("hermes")
	if o := operation(t, c, name); o.GetState() != brokerv1.OperationState_OPERATION_STATE_RUNNING {
		t.Fatalf("there is no middle any more: %v", o)
	}
	rest, err := watch(t, c, name, seen[2].GetSequence())
	if err != nil || len(rest) < 2 || rest[0].GetSequence() != seen[2].GetSequence()+1 {
		t.Fatalf("after %v: %v, %v", seen, rest, err)
	}
	all := append(seen, rest...)
	result := inOrder(t, all, nil)
	if result.GetDigest() != image.Digest || result.GetImageId() != image.ID {
		t.Errorf("result %v of %+v", result, image)
	}
	same(t, all[:1], begun)
	o := ended(t, c, name, brokerv1.OperationState_OPERATION_STATE_SUCCEEDED)
	if o.GetLastSequence() != all[len(all)-1].GetSequence() || o.GetErrorReason() != "" {
		t.Errorf("operation %v", o)
	}
	got, err := c.Operations().GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
	if err != nil || !proto.Equal(got.GetLatest().GetPull(), all[len(all)-1]) {
		t.Errorf("latest: %v, %v", got, err)
	}
	// Once more, from the first: by watching, and by the same request.
	replayed, err := watch(t, c, name, 0)
	if err != nil {
		t.Error(err)
	}
	same(t, replayed, all)
	req = proto.CloneOf(req)
	req.Detach = false
	_, replayed, err = pullRequest(t, c, req)
	if err != nil {
		t.Error(err)
	}
	same(t, replayed, all)
	if past, err := watch(t, c, name, o.GetLastSequence()); err != nil || len(past) > 0 {
		t.Errorf("after the last: %v, %v", past, err)
	}
	req.Image = r.Addr + "/team/app:2"
	_, _, err = pullRequest(t, c, req)
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED)
	if n := fetched(r, image); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// TestHangUp: who hangs up cancels, unless somebody said detach before.
func TestHangUp(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	for _, detach := range []bool{false, true} {
		t.Run(fmt.Sprintf("detach %t", detach), func(t *testing.T) {
			r.Reset()
			image := push(t, r, "team/app:1", testhost.RandomLayer(100<<10))
			held := holdLayers(t, r, image)
			ctx, hangUp := context.WithCancel(within(t))
			defer hangUp()
			req := &brokerv1.PullRequest{Image: r.Addr + "/team/app:1", RequestId: client.NewRequestID()}
			_, first := begin(t, ctx, c, req)
			held.wait(t)
			name := first.GetOperation().GetName()
			if first.GetOperation().GetDetached() {
				t.Errorf("detached by nobody: %v", first)
			}
			state := brokerv1.OperationState_OPERATION_STATE_CANCELLED
			if detach {
				state = brokerv1.OperationState_OPERATION_STATE_SUCCEEDED
				s, err := c.Images().Pull(within(t), &brokerv1.PullRequest{Image: req.GetImage(), RequestId: req.GetRequestId(), Detach: true})
				if err != nil {
					t.Fatal(err)
				}
				if events, err := receive(s); err != nil || len(events) != 1 || events[0].GetOperation().GetName() != name {
					t.Errorf("detaching %s: %v, %v", name, events, err)
				}
				if !operation(t, c, name).GetDetached() {
					t.Error("it is not detached")
				}
			}
			hangUp()
			if !detach {
				if o := ended(t, c, name, state); o.GetErrorReason() != "OPERATION_CANCELLED" {
					t.Errorf("operation %v", o)
				}
			} else {
				time.Sleep(300 * time.Millisecond) // Time for it to be cancelled all the same.
			}
			held.release()
			ended(t, c, name, state)
			if found := present(t, r.Addr); (len(found) == 1 && found[0].ID == image.ID) != detach {
				t.Errorf("the engine has %+v", found)
			}
		})
	}
}

// TestOperationsOfOthers: the operations of one caller are nothing to another, but
// to who may see them.
func TestOperationsOfOthers(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig+"limits:\n  operations: 2\n  operations_per_kind: 3\n")
	hermes, ada, eve := b.dial("hermes"), b.dial("ada"), b.dial("eve")
	images := []testhost.PushedImage{
		push(t, r, "team/app:1", testhost.RandomLayer(1<<10)), push(t, r, "team/app:2", testhost.RandomLayer(1<<10)), push(t, r, "team/app:3", testhost.RandomLayer(1<<10)),
	}
	held := holdLayers(t, r, images...)
	start := func(c *client.Client, tag string) string {
		t.Helper()
		_, first := begin(t, within(t), c, &brokerv1.PullRequest{Image: r.Addr + "/team/app:" + tag, Detach: true})
		return first.GetOperation().GetName()
	}
	names := []string{start(hermes, "1"), start(hermes, "2")}
	_, _, err := pull(t, hermes, r.Addr+"/team/app:3")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED)
	// Joining is an operation too.
	_, _, err = pull(t, hermes, r.Addr+"/team/app:1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED)
	adas := start(ada, "3")
	// As many of the kind run as may. A first one of her own eve might begin.
	_, _, err = pull(t, ada, r.Addr+"/team/app:1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED)
	if _, ok := client.RetryAfter(err); !ok {
		t.Error("no word on when to come again")
	}

	nobodys := "operations/" + strings.Repeat("A", 26)
	for method, ask := range map[string]func(c *client.Client, name string) error{
		"get": func(c *client.Client, name string) error {
			_, err := c.Operations().GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
			return err
		},
		"watch": func(c *client.Client, name string) error {
			s, err := c.Operations().WatchOperation(within(t), &brokerv1.WatchOperationRequest{Name: name})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"cancel": func(c *client.Client, name string) error {
			_, err := c.Operations().CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name, ValidateOnly: true})
			return err
		},
	} {
		absent, others := ask(eve, nobodys), ask(eve, names[0])
		want(t, absent, brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND)
		want(t, others, brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND)
		if a, o := status.Convert(absent), status.Convert(others); strings.ReplaceAll(a.Message(), nobodys, names[0]) != o.Message() || a.Code() != o.Code() {
			t.Errorf("%s: %q and %q tell what exists", method, a.Message(), o.Message())
		}
		if err := ask(ada, names[0]); err != nil {
			t.Errorf("%s with the permission: %v", method, err)
		}
		if err := ask(hermes, names[0]); err != nil {
			t.Errorf("%s of one's own: %v", method, err)
		}
	}
	for caller, tc := range map[*client.Client][]string{eve: nil, hermes: {names[1], names[0]}, ada: {adas, names[1], names[0]}} {
		var got []string
		token := ""
		for {
			page, err := caller.Operations().ListOperations(t.Context(), &brokerv1.ListOperationsRequest{PageSize: 1, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.GetOperations() {
				got = append(got, o.GetName())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		if strings.Join(got, " ") != strings.Join(tc, " ") {
			t.Errorf("listed %v, want %v", got, tc)
		}
	}
	if _, err := ada.Operations().CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: names[0]}); err != nil {
		t.Errorf("ada cancels: %v", err)
	}
	ended(t, hermes, names[0], brokerv1.OperationState_OPERATION_STATE_CANCELLED)
	held.release()
	ended(t, hermes, names[1], brokerv1.OperationState_OPERATION_STATE_SUCCEEDED)
	ended(t, ada, adas, brokerv1.OperationState_OPERATION_STATE_SUCCEEDED)
	list, err := ada.Operations().ListOperations(t.Context(), &brokerv1.ListOperationsRequest{States: []brokerv1.OperationState{brokerv1.OperationState_OPERATION_STATE_CANCELLED}})
	if err != nil || len(list.GetOperations()) != 1 || list.GetOperations()[0].GetName() != names[0] {
		t.Errorf("the cancelled: %v, %v", list, err)
	}
	if result, _, err := pull(t, hermes, r.Addr+"/team/app:1"); err != nil || result.GetDigest() != images[0].Digest {
		t.Errorf("with room again: %v, %v", result, err)
	}
}
