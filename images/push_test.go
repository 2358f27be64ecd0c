package main

import (
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestPush sends layouts to a real registry: the digests stay, the names follow the
// registry, and a second push is no error.
func TestPush(t *testing.T) {
	out := t.TempDir()
	wanted := map[string]string{}
	for _, image := range []string{"virt-launcher", "dvcr"} {
		content, err := random.Image(1024, 2)
		if err != nil {
			t.Fatal(err)
		}
		index, err := layout.Write(filepath.Join(out, image), empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		annotations := map[string]string{referenceAnnotation: "orlop.internal/" + image + ":v9"}
		if err := index.AppendImage(content, layout.WithAnnotations(annotations)); err != nil {
			t.Fatal(err)
		}
		digest, err := content.Digest()
		if err != nil {
			t.Fatal(err)
		}
		wanted[image] = digest.String()
	}
	server := httptest.NewServer(registry.New())
	defer server.Close()
	target := strings.TrimPrefix(server.URL, "http://") + "/site/orlop"

	for range 2 {
		if err := pushAll(t.Context(), settings{out: out, version: "v9"}, target); err != nil {
			t.Fatal(err)
		}
	}
	for image, digest := range wanted {
		reference, err := name.ParseReference(target + "/" + image + ":v9")
		if err != nil {
			t.Fatal(err)
		}
		got, err := remote.Head(reference)
		if err != nil {
			t.Fatalf("look for %s: %v", reference, err)
		}
		if got.Digest.String() != digest {
			t.Errorf("%s is %s, want %s", image, got.Digest, digest)
		}
	}
}

func TestPushWithoutImagesSaysWhatToDo(t *testing.T) {
	err := pushAll(t.Context(), settings{out: t.TempDir(), version: "v9"}, "registry.example.com/orlop")
	if err == nil || !strings.Contains(err.Error(), "build them first") {
		t.Errorf("got %v", err)
	}
}
