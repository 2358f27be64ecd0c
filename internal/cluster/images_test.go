package cluster

import (
	"testing"
	"time"

	containerimages "github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
)

func TestOutdatedImages(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var all []containerimages.Image
	add := func(name string, age time.Duration) {
		all = append(all, containerimages.Image{Name: name, CreatedAt: start.Add(-age)})
	}
	for i, tag := range []string{"v6", "v5", "v4", "v3", "v2", "v1"} {
		add("orlop.internal/csi:"+tag, time.Duration(i)*time.Hour)
	}
	add("orlop.internal/pause:v1", 100*time.Hour)
	add("example.com/app:v1", 100*time.Hour)
	add("sha256:0123", 100*time.Hour)
	got := outdated(all, map[string]bool{"orlop.internal/csi:v2": true})
	// v6 to v4 are the newest, v2 is in use, the rest is not ours or the only one.
	want := []string{"orlop.internal/csi:v3", "orlop.internal/csi:v1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
