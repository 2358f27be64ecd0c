package testkit

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

var shared struct {
	sync.Mutex
	server *Server
	err    error
}

// API returns the API server that the tests of one package share; it is started by
// the first call and stopped by Main.
func API(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = Start(Options{})
	}
	if shared.err != nil {
		t.Fatalf("start the API server: %v", shared.err)
	}
	return shared.server
}

// Main is the body of a package's TestMain: it runs the tests, stops the shared API
// server and fails if goroutines are left behind.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	if shared.server != nil {
		shared.server.Stop()
	}
	shared.Unlock()
	if code == 0 {
		if leaked := leakedGoroutines(5 * time.Second); len(leaked) > 0 {
			fmt.Fprintf(os.Stderr, "%d goroutines were left behind:\n\n%s\n", len(leaked), strings.Join(leaked, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// harmless are parts of the stacks of goroutines that live as long as the process.
var harmless = []string{
	"testing.(*M).", "testing.tRunner", "testkit.leakedGoroutines", "os/signal.", "runtime.ensureSigM",
	"net/http.(*persistConn)", "net/http.(*http2clientConnReadLoop)", "net/http.(*http2ClientConn)", "net/http/internal/http2.",
	"golang.org/x/net/http2.(*clientConnReadLoop)", "golang.org/x/net/http2.(*ClientConn)", "golang.org/x/net/http2.(*Transport)",
	"klog/v2.(*flushDaemon)", "client-go/rest.(*", "client-go/transport.(*", "k8s.io/apimachinery/pkg/util/wait.", "k8s.io/apimachinery/pkg/watch.(*filteredWatch)",
	"sigs.k8s.io/controller-runtime/pkg/log.", "go.opencensus.io/", "created by time.goFunc",
}

// leakedGoroutines returns the stacks of goroutines that do not end in time.
func leakedGoroutines(patience time.Duration) []string {
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(patience)
	for {
		leaked := suspicious()
		if len(leaked) == 0 || time.Now().After(deadline) {
			return leaked
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func suspicious() []string {
	buffer := make([]byte, 4<<20)
	buffer = buffer[:runtime.Stack(buffer, true)]
	var list []string
stacks:
	for i, stack := range strings.Split(string(buffer), "\n\n") {
		if i == 0 || stack == "" { // the first one is ours
			continue
		}
		for _, part := range harmless {
			if strings.Contains(stack, part) {
				continue stacks
			}
		}
		list = append(list, stack)
	}
	return list
}

// Start of the time of clocks made by Clock.
var clockStart = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// Clock returns a clock that only moves when told to.
func Clock() *clocktesting.FakeClock { return clocktesting.NewFakeClock(clockStart) }

// Eventually calls check until it returns nil, and fails the test if that does not
// happen in time; what says what was waited for.
func Eventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// Never calls check until the time is over and fails the test if it ever returns an error.
func Never(t testing.TB, during time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(during)
	for time.Now().Before(deadline) {
		if err := check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

func newRequest(ctx context.Context, url string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	return request, nil
}
