package attempt

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"orlop.dev/orlop/internal/importer"
)

// probeTimeout bounds one question to an importer; it is far below progressPeriod,
// so that importers which do not answer cannot keep the workers busy.
const probeTimeout = time.Second

// web follows no redirect and no proxy: the pod runs in the user's namespace, and
// must not be able to send the controller anywhere.
var web = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// HTTPProber asks importers over HTTP.
type HTTPProber struct{}

// Progress asks the importer behind a pod's address.
func (HTTPProber) Progress(ctx context.Context, podIP string) (*importer.Progress, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	url := "http://" + net.JoinHostPort(podIP, strconv.Itoa(importer.ProgressPort)) + importer.ProgressPath
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	response, err := web.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s: answered %s", url, response.Status)
	}
	p := &importer.Progress{}
	// The pod runs in the user's namespace: what it says is bounded.
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<16)).Decode(p); err != nil {
		return nil, fmt.Errorf("read progress of %s: %w", url, err)
	}
	return p, nil
}
