package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	core "orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/api/subresources/v1alpha2"
)

const (
	// defaultUnfreeze is how long file systems stay frozen if nobody says how long.
	defaultUnfreeze = 5 * time.Minute
	// maxUnfreeze is the longest the handler accepts.
	maxUnfreeze = time.Hour
	// orderTimeout bounds one order to a handler: the guest's agent has 20 s for it, and
	// may be busy before.
	orderTimeout = 50 * time.Second
	// maxBody bounds the body of a request, in bytes.
	maxBody = 64 << 10
)

// agentOrders are the subresources that ask something of the guest's agent, by way of
// the node's handler.
type agentOrders struct {
	machines machines
	handlers Handlers
}

// Destroy frees nothing.
func (agentOrders) Destroy() {}

// ConnectMethods is the method of an order.
func (agentOrders) ConnectMethods() []string { return []string{http.MethodPut} }

// send passes an order on and answers once it has been carried out.
func (a agentOrders) send(ctx context.Context, where place, name, verb string, query url.Values) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	config, err := a.handlers.tlsConfig(where.node)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	location := &url.URL{Scheme: "https", Host: net.JoinHostPort(where.address, strconv.Itoa(a.handlers.Port)), Path: "/"}
	location = location.JoinPath("v1", "namespaces", where.namespace, "instances", where.instance, verb)
	location.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, location.String(), nil)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("build request: %w", err))
	}
	if user, ok := apirequest.UserFrom(ctx); ok {
		request.Header.Set("X-Remote-User", user.GetName()) // for the handler's log
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true,
	}}
	response, err := client.Do(request)
	if err != nil {
		return explain(where.node, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	return refusal(name, response)
}

// handler carries out an order once the request has been read.
func (a agentOrders) handler(ctx context.Context, where place, name, verb string, query func(*http.Request) (url.Values, error), responder rest.Responder) http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		values, err := query(r)
		if err != nil {
			responder.Error(apierrors.NewBadRequest(err.Error()))
			return
		}
		if err := a.send(ctx, where, name, verb, values); err != nil {
			responder.Error(err)
			return
		}
		responder.Object(http.StatusOK, &metav1.Status{Status: metav1.StatusSuccess})
	})
}

// freeze is virtualmachines/freeze.
type freeze struct{ agentOrders }

var _ rest.Connecter = freeze{}

// New returns the options, the only type of this subresource.
func (freeze) New() runtime.Object { return &v1alpha2.VirtualMachineFreeze{} }

// NewConnectOptions returns the query parameters.
func (freeze) NewConnectOptions() (runtime.Object, bool, string) {
	return &v1alpha2.VirtualMachineFreeze{}, false, ""
}

// Connect freezes the guest's file systems.
func (f freeze) Connect(ctx context.Context, name string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	asked, ok := options.(*v1alpha2.VirtualMachineFreeze)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("bug: freeze options are %T", options))
	}
	vm, err := f.machines.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if phase := vm.Status.Phase; phase != core.MachineRunning {
		return nil, notRunning(name, fmt.Sprintf("virtual machine %s is not running: its phase is %s", name, phaseName(phase)))
	}
	where, err := f.machines.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	return f.handler(ctx, where, name, "freeze", func(r *http.Request) (url.Values, error) {
		length, err := unfreezeTimeout(asked.UnfreezeTimeout, r.Body)
		if err != nil {
			return nil, err
		}
		return url.Values{"timeout": {strconv.FormatInt(int64((length+time.Second-1)/time.Second), 10)}}, nil
	}, responder), nil
}

// unfreezeTimeout is how long the file systems may stay frozen: as the query says, or
// the body, or 5 minutes.
func unfreezeTimeout(query *metav1.Duration, body io.Reader) (time.Duration, error) {
	asked := v1alpha2.VirtualMachineFreeze{UnfreezeTimeout: query}
	if query == nil && body != nil {
		content, err := io.ReadAll(io.LimitReader(body, maxBody))
		if err != nil {
			return 0, fmt.Errorf("read body: %w", err)
		}
		if len(content) > 0 {
			if err := json.Unmarshal(content, &asked); err != nil {
				return 0, errors.New(`the body must be empty or like {"unfreezeTimeout":"30s"}`)
			}
		}
	}
	if asked.UnfreezeTimeout == nil || asked.UnfreezeTimeout.Duration == 0 {
		return defaultUnfreeze, nil
	}
	if d := asked.UnfreezeTimeout.Duration; d > 0 && d <= maxUnfreeze {
		return d, nil
	}
	return 0, fmt.Errorf("unfreezeTimeout %s is not from 1s to %s", asked.UnfreezeTimeout.Duration, maxUnfreeze)
}

// unfreeze is virtualmachines/unfreeze.
type unfreeze struct{ agentOrders }

var _ rest.Connecter = unfreeze{}

// New returns the options, the only type of this subresource.
func (unfreeze) New() runtime.Object { return &v1alpha2.VirtualMachineUnfreeze{} }

// NewConnectOptions returns the query parameters, of which there are none.
func (unfreeze) NewConnectOptions() (runtime.Object, bool, string) {
	return &v1alpha2.VirtualMachineUnfreeze{}, false, ""
}

// Connect lets the guest write again.
func (u unfreeze) Connect(ctx context.Context, name string, _ runtime.Object, responder rest.Responder) (http.Handler, error) {
	where, err := u.machines.locate(ctx, name)
	if err != nil {
		return nil, err
	}
	none := func(*http.Request) (url.Values, error) { return nil, nil }
	return u.handler(ctx, where, name, "unfreeze", none, responder), nil
}
