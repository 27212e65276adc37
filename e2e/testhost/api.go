package testhost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// apiVersion is spoken by every supported engine: it is the newest of the
// oldest (20.10) and above the minimum of the newest.
const apiVersion = "v1.41"

// An EngineError is a request the engine refused.
type EngineError struct {
	Status  int    // HTTP status
	Message string // the engine's own words
}

func (e *EngineError) Error() string { return fmt.Sprintf("engine: %d: %s", e.Status, e.Message) }

// engineClient speaks the Engine API over a unix socket. It is not the Docker
// SDK on purpose: the suite checks the broker's use of that SDK, so it looks at
// the engine through other eyes.
type engineClient struct{ http.Client }

func newEngineClient(socket string) *engineClient {
	return &engineClient{http.Client{Transport: unixTransport(socket)}}
}

func unixTransport(socket string) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true, // bodies pass as the engine wrote them
	}
}

// do returns the response of a request that the engine accepted. The caller
// closes its body.
func (c *engineClient) do(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://engine/"+apiVersion+path, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var said struct{ Message string }
	if json.Unmarshal(text, &said) != nil {
		said.Message = strings.TrimSpace(string(text))
	}
	return nil, &EngineError{resp.StatusCode, said.Message}
}

// API makes one request of the engine, as JSON: in unless nil is the body, out
// unless nil receives the answer. path has no version but may have a query. A
// refusal is an [*EngineError].
func (h *Host) API(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	contentType := ""
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, contentType = bytes.NewReader(text), "application/json"
	}
	resp, err := h.api.do(ctx, method, path, contentType, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}
