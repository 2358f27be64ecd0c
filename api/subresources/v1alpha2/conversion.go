package v1alpha2

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
)

// addConversions teaches a scheme to read query parameters.
func addConversions(scheme *runtime.Scheme) error {
	builder := runtime.NewSchemeBuilder(
		parameters(func(query url.Values, out *VirtualMachineConsole) (err error) {
			out.Probe, err = boolean(query, "probe")
			return err
		}),
		parameters(func(query url.Values, out *VirtualMachineVNC) (err error) {
			out.Probe, err = boolean(query, "probe")
			return err
		}),
		parameters(func(query url.Values, out *VirtualMachineFreeze) error {
			text := query.Get("unfreezeTimeout")
			if text == "" {
				return nil
			}
			length, err := time.ParseDuration(text)
			if err != nil {
				return fmt.Errorf("query parameter unfreezeTimeout: %q is not a duration such as 30s", text)
			}
			out.UnfreezeTimeout = &metav1.Duration{Duration: length}
			return nil
		}),
		parameters(func(url.Values, *VirtualMachineUnfreeze) error { return nil }),
		parameters(func(query url.Values, out *VirtualMachinePortForward) error {
			port, err := strconv.ParseInt(query.Get("port"), 10, 32)
			if err != nil {
				return fmt.Errorf("query parameter port: %q is not a number", query.Get("port"))
			}
			out.Port, out.Protocol = int32(port), query.Get("protocol")
			return nil
		}),
	)
	return builder.AddToScheme(scheme)
}

func parameters[T any](read func(url.Values, *T) error) func(*runtime.Scheme) error {
	return func(scheme *runtime.Scheme) error {
		return scheme.AddConversionFunc((*url.Values)(nil), (*T)(nil), func(in, out any, _ conversion.Scope) error {
			return read(*in.(*url.Values), out.(*T))
		})
	}
}

func boolean(query url.Values, name string) (bool, error) {
	text := query.Get(name)
	if text == "" {
		return false, nil
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("query parameter %s: %q is not true or false", name, text)
	}
	return value, nil
}
