package apiserver

import (
	"maps"

	extensions "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"orlop.dev/orlop/internal/apiserver/openapi"
)

// openAPIDefinitions are ours and, from apiextensions, those of the meta types
// every API server serves.
func openAPIDefinitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := extensions.GetOpenAPIDefinitions(ref)
	ours := openapi.GetOpenAPIDefinitions(func(path string) spec.Ref { return ref(modelName(path)) })
	for name, definition := range ours {
		for i, dependency := range definition.Dependencies {
			definition.Dependencies[i] = modelName(dependency)
		}
		ours[name] = definition
	}
	maps.Copy(all, ours)
	return all
}

// modelName turns a Go path of apimachinery into the model name that its
// generated definitions are filed under; our own types are filed under their paths.
func modelName(path string) string {
	if len(path) > 7 && path[:7] == "k8s.io/" {
		return util.ToRESTFriendlyName(path)
	}
	return path
}
