package testhost_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/e2e/testhost"
)

func record(t *testing.T, upstream string) (*testhost.Recorder, *http.Client) {
	t.Helper()
	r, err := testhost.RecordEngine(upstream)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		r.Close()
	})
	return r, &http.Client{Transport: transport}
}

func TestRecorderRecordsRequests(t *testing.T) {
	r, client := record(t, "")
	req, err := http.NewRequest("POST", "http://x/v1.41/containers/a%2Fb/exec?x=1&x=2", strings.NewReader(`{"Cmd":["id"]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotImplemented {
		t.Errorf("without an engine or a script: %s", resp.Status)
	}
	all := r.Requests()
	if len(all) != 1 {
		t.Fatalf("recorded %v", all)
	}
	got := all[0]
	if got.String() != "POST /v1.41/containers/a%2Fb/exec?x=1&x=2" || got.Path != "/containers/a/b/exec" ||
		len(got.Query["x"]) != 2 || got.Header.Get("Upgrade") != "tcp" || string(got.Body) != `{"Cmd":["id"]}` {
		t.Errorf("recorded %+v", got)
	}
	r.Reset()
	if left := r.Requests(); len(left) != 0 {
		t.Errorf("after Reset: %v", left)
	}
}

func TestRecorderScripts(t *testing.T) {
	r, client := record(t, "")
	r.Script("GET /containers/{id}/json", func(w http.ResponseWriter, req *http.Request) {
		testhost.Answer(map[string]string{"Id": req.PathValue("id")})(w, req)
	})
	r.Script("GET /drop", testhost.Drop())
	r.Script("GET /garbage", testhost.Garbage())
	r.Script("GET /fail", testhost.Answer("replaced"))
	r.Script("GET /fail", testhost.Fail(500, "no space"))
	r.Script("GET /slow", r.Delay(50*time.Millisecond))

	get := func(path string) (int, string, error) {
		resp, err := client.Get("http://x" + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, strings.TrimSpace(string(body)), err
	}
	for _, path := range []string{"/containers/abc/json", "/v1.41/containers/abc/json"} {
		if _, body, err := get(path); body != `{"Id":"abc"}` || err != nil {
			t.Errorf("%s: %s, %v", path, body, err)
		}
	}
	if code, body, err := get("/fail"); code != 500 || body != `{"message":"no space"}` || err != nil {
		t.Errorf("/fail: %d, %s, %v", code, body, err)
	}
	if _, body, err := get("/garbage"); json.Valid([]byte(body)) || err != nil {
		t.Errorf("/garbage: %q, %v", body, err)
	}
	if code, _, err := get("/drop"); err == nil {
		t.Errorf("/drop: %d", code)
	}
	begin := time.Now()
	if code, _, err := get("/slow"); code != 501 || err != nil || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("/slow: %d, %v after %v", code, err, time.Since(begin))
	}
	if code, _, _ := get("/containers/../drop"); code != 501 {
		t.Errorf("an unclean path met a script: %d", code)
	}
	defer func() {
		if recover() == nil {
			t.Error("a malformed pattern was taken")
		}
	}()
	r.Script("not a pattern", testhost.Drop())
}

func TestRecorderWithDeadEngine(t *testing.T) {
	_, client := record(t, "/nowhere/docker.sock")
	resp, err := client.Get("http://x/_ping")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("dead engine: %s", resp.Status)
	}
}

// A raw stream has to pass in both directions and end with the recorder.
func TestRecorderPassesHijackedStreams(t *testing.T) {
	engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		io.Copy(conn, rw)
	}))
	socket := t.TempDir() + "/e.sock"
	engine.Listener.Close()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	engine.Listener = listener
	engine.Start()
	defer engine.Close()

	r, _ := record(t, socket)
	conn, err := net.Dial("unix", r.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /v1.41/containers/x/attach?stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(conn, "ping\n")
	if line, err := in.ReadString('\n'); line != "ping\n" || err != nil {
		t.Errorf("echo: %q, %v", line, err)
	}
	if got := r.Requests(); len(got) != 1 || got[0].Path != "/containers/x/attach" || got[0].Header.Get("Upgrade") != "tcp" {
		t.Errorf("recorded %+v", got)
	}
	r.Close()
	if _, err := in.ReadByte(); err == nil {
		t.Error("the stream outlives the recorder")
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the stream outlives the recorder")
	}
}

func testRecorderUpstream(t *testing.T, h *testhost.Host) {
	r, client := record(t, h.Socket)
	r.Script("GET /info", testhost.Fail(500, "injected"))
	for path, want := range map[string]int{"/v1.41/version": 200, "/v1.41/info": 500} {
		resp, err := client.Get("http://x" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if got := r.Requests(); len(got) != 2 {
		t.Errorf("recorded %v", got)
	}
}
