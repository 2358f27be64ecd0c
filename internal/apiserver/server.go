// Package apiserver is the aggregated API subresources.virtualization.deckhouse.io:
// consoles and forwarded ports of running virtual machines, and orders to the agents
// in their guests.
//
// It decides nothing about machines, and stores nothing but who holds a console: a
// Lease beside the machine, which informs and never stands in the way. Authentication and
// authorization are delegated to the cluster's API server; a stream is then
// proxied, unread, to the handler of the machine's node over mutual TLS. The
// caller's credentials never travel further than this process.
package apiserver

import (
	"context"
	"fmt"
	"net"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/subresources/v1alpha2"
)

// Options configure the server.
type Options struct {
	// Serving, Authentication and Authorization are the standard options of an
	// aggregated API server, with their standard flags.
	Serving        *genericoptions.SecureServingOptionsWithLoopback
	Authentication *genericoptions.DelegatingAuthenticationOptions
	Authorization  *genericoptions.DelegatingAuthorizationOptions
	// Handlers says how the nodes' handlers are reached.
	Handlers Handlers
	// Clock times the records of sessions.
	Clock clock.WithTicker
}

// NewOptions returns options that serve on port 8443.
func NewOptions() *Options {
	serving := genericoptions.NewSecureServingOptions()
	serving.BindPort = 8443
	serving.BindAddress = net.IPv4zero
	return &Options{
		Serving:        serving.WithLoopback(),
		Authentication: genericoptions.NewDelegatingAuthenticationOptions(),
		Authorization:  genericoptions.NewDelegatingAuthorizationOptions(),
		Handlers:       Handlers{Port: 4101},
		Clock:          clock.RealClock{},
	}
}

// Validate returns every mistake in the options.
func (o *Options) Validate() error {
	var errs []error
	errs = append(errs, o.Serving.Validate()...)
	errs = append(errs, o.Authentication.Validate()...)
	errs = append(errs, o.Authorization.Validate()...)
	errs = append(errs, o.Handlers.validate())
	return utilerrors.NewAggregate(errs)
}

// Run serves until the context ends. The cluster is asked, uncached, for each new
// stream: 50 000 machines are not worth keeping for a handful of consoles.
func (o *Options) Run(ctx context.Context, cluster client.Client) error {
	scheme, codecs, err := newScheme()
	if err != nil {
		return err
	}
	config := server.NewConfig(codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	definitions := openapi.NewDefinitionNamer(scheme)
	config.OpenAPIConfig = server.DefaultOpenAPIConfig(openAPIDefinitions, definitions)
	config.OpenAPIConfig.Info.Title = "Orlop subresources"
	config.OpenAPIV3Config = server.DefaultOpenAPIV3Config(openAPIDefinitions, definitions)
	config.OpenAPIV3Config.Info.Title = "Orlop subresources"
	config.LongRunningFunc = longRunning
	if err := o.apply(config); err != nil {
		return err
	}
	generic, err := config.Complete(nil).New("virtualization-api", server.NewEmptyDelegate())
	if err != nil {
		return fmt.Errorf("build server: %w", err)
	}
	group := server.NewDefaultAPIGroupInfo(v1alpha2.GroupVersion.Group, scheme, runtime.NewParameterCodec(scheme), codecs)
	group.VersionedResourcesStorageMap[v1alpha2.GroupVersion.Version] = o.storage(cluster)
	if err := generic.InstallAPIGroup(&group); err != nil {
		return fmt.Errorf("install API group: %w", err)
	}
	return generic.PrepareRun().RunWithContext(ctx)
}

func (o *Options) storage(cluster client.Client) map[string]rest.Storage {
	machines := machines{reader: cluster}
	streams := streams{machines: machines, handlers: o.Handlers, sessions: &sessions{client: cluster, clock: o.Clock}}
	orders := agentOrders{machines: machines, handlers: o.Handlers}
	return map[string]rest.Storage{
		"virtualmachines":             machines,
		"virtualmachines/console":     console{streams},
		"virtualmachines/portforward": portForward{streams},
		"virtualmachines/freeze":      freeze{orders},
		"virtualmachines/unfreeze":    unfreeze{orders},
	}
}

func (o *Options) apply(config *server.Config) error {
	if err := o.Serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		return fmt.Errorf("apply serving options: %w", err)
	}
	if err := o.Authentication.ApplyTo(&config.Authentication, config.SecureServing, nil); err != nil {
		return fmt.Errorf("apply authentication options: %w", err)
	}
	if err := o.Authorization.ApplyTo(&config.Authorization); err != nil {
		return fmt.Errorf("apply authorization options: %w", err)
	}
	return nil
}

func newScheme() (*runtime.Scheme, serializer.CodecFactory, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha2.AddToScheme(scheme); err != nil {
		return nil, serializer.CodecFactory{}, fmt.Errorf("bug: build scheme: %w", err)
	}
	unversioned := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, unversioned)
	scheme.AddUnversionedTypes(unversioned, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	return scheme, serializer.NewCodecFactory(scheme), nil
}
