package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	dockerclient "github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const thousand = 1000

const lists = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [images.list]
        on: ["images/docker.io/*/*"]
      - allow: [containers.list]
        on: ["containers/*"]
`

// thousands scripts an engine with a thousand images and a thousand containers:
// answers that an engine gave for one, many times over. Several are of one age,
// and the engine's order is not that of a list.
func (r *rig) thousands() {
	r.t.Helper()
	read := func(name string) map[string]any {
		data, err := os.ReadFile("testdata/engine/" + name)
		if err != nil {
			r.t.Fatal(err)
		}
		var one map[string]any
		if err := json.Unmarshal(data, &one); err != nil {
			r.t.Fatal(err)
		}
		return one
	}
	answer := func(one map[string]any, edit func(n int, copy map[string]any)) http.HandlerFunc {
		all := make([]map[string]any, thousand)
		for n := range all {
			all[n] = map[string]any{}
			for k, v := range one {
				all[n][k] = v
			}
			all[n]["Created"] = 1795579223 - (n*7919)%thousand/3
			edit(n, all[n])
		}
		body, err := json.Marshal(all)
		if err != nil {
			r.t.Fatal(err)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		}
	}
	r.engine.Script("GET /images/json", answer(read("image.json"), func(n int, c map[string]any) {
		c["Id"] = fmt.Sprintf("sha256:%064x", n)
		c["RepoTags"] = []string{fmt.Sprintf("team/app-%d:latest", n)}
		c["RepoDigests"] = []string{fmt.Sprintf("team/app-%d@sha256:%064x", n, n)}
	}))
	r.engine.Script("GET /containers/json", answer(read("container.json"), func(n int, c map[string]any) {
		c["Id"], c["Names"], c["ImageID"] = fmt.Sprintf("%064x", n), []string{fmt.Sprintf("/c%d", n)}, fmt.Sprintf("sha256:%064x", n)
	}))
}

// TestThousands: every page is what it should be, each thing comes once, newest
// first, and reading all of it often costs no memory that stays.
func TestThousands(t *testing.T) {
	r := newRig(t, lists, nil)
	r.thousands()
	conn := r.dial(hermes)
	images, containers := brokerv1.NewImageServiceClient(conn), brokerv1.NewContainerServiceClient(conn)
	type thing struct {
		name    string
		created time.Time
	}
	readImages := func(size int32) (all []thing) {
		token := ""
		for {
			p, err := images.ListImages(t.Context(), &brokerv1.ListImagesRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range p.GetImages() {
				if len(i.GetInUseBy()) != 1 || len(i.GetDigests()) != 1 {
					t.Fatalf("%v", i)
				}
				all = append(all, thing{i.GetReferences()[0], i.GetCreateTime().AsTime()})
			}
			if token = p.GetNextPageToken(); token == "" {
				return all
			}
			if len(p.GetImages()) != int(size) {
				t.Fatalf("a page of %d, want %d", len(p.GetImages()), size)
			}
		}
	}
	readContainers := func(size int32) (all []thing) {
		token := ""
		for {
			p, err := containers.ListContainers(t.Context(), &brokerv1.ListContainersRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range p.GetContainers() {
				all = append(all, thing{c.GetName(), c.GetCreateTime().AsTime()})
			}
			if token = p.GetNextPageToken(); token == "" {
				return all
			}
		}
	}
	for what, read := range map[string]func(int32) []thing{"images": readImages, "containers": readContainers} {
		for _, size := range []int32{7, 100, 500} {
			all := read(size)
			seen := map[string]bool{}
			for i, x := range all {
				if seen[x.name] {
					t.Fatalf("%s by %d: %s comes twice", what, size, x.name)
				}
				seen[x.name] = true
				if i > 0 && x.created.After(all[i-1].created) {
					t.Fatalf("%s by %d: %s is out of order", what, size, x.name)
				}
			}
			if len(all) != thousand {
				t.Errorf("%s by %d: %d, want %d", what, size, len(all), thousand)
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for range 20 {
		readImages(500)
		readContainers(500)
	}
	r.engine.Reset() // Its record of requests is not the broker's.
	if after := heap(); after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
}

// BenchmarkListThousand lists a thousand images, and who uses them, through the
// broker in pages of 500, and asks the SDK for the two lists behind that, in turn,
// on the same answers. The engine's part is the same in both.
func BenchmarkListThousand(b *testing.B) {
	r := newRig(b, lists, nil)
	r.thousands()
	images := brokerv1.NewImageServiceClient(r.dial(hermes))
	direct, err := dockerclient.NewClientWithOpts(dockerclient.WithHost("unix://"+r.engine.Socket), dockerclient.WithAPIVersionNegotiation())
	if err != nil {
		b.Fatal(err)
	}
	defer direct.Close()
	ctx := context.Background()
	var ours, theirs []time.Duration
	for b.Loop() {
		begun, token, n := time.Now(), "", 0
		for {
			p, err := images.ListImages(ctx, &brokerv1.ListImagesRequest{PageSize: 500, PageToken: token})
			if err != nil {
				b.Fatal(err)
			}
			n += len(p.GetImages())
			if token = p.GetNextPageToken(); token == "" {
				break
			}
		}
		ours = append(ours, time.Since(begun))
		begun = time.Now()
		for range 2 { // Two pages are two times the lists.
			all, err := direct.ImageList(ctx, image.ListOptions{})
			if err != nil || len(all) != n || n != thousand {
				b.Fatal(len(all), n, err)
			}
			if _, err := direct.ContainerList(ctx, container.ListOptions{All: true}); err != nil {
				b.Fatal(err)
			}
		}
		theirs = append(theirs, time.Since(begun))
	}
	p50 := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2]) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(ours)/thousand, "broker-p50-ns/item")
	b.ReportMetric(p50(theirs)/thousand, "sdk-p50-ns/item")
	b.ReportMetric(p50(ours)/p50(theirs), "p50-ratio")
}
