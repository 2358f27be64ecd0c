package storageclass

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func class(provisioner string, changes ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class", Annotations: map[string]string{}, Labels: map[string]string{}}, Provisioner: provisioner}
	for _, change := range changes {
		change(c)
	}
	return c
}

func late(c *storagev1.StorageClass) {
	c.VolumeBindingMode = new(storagev1.VolumeBindingWaitForFirstConsumer)
}

func annotated(key, value string) func(*storagev1.StorageClass) {
	return func(c *storagev1.StorageClass) { c.Annotations[key] = value }
}

func TestModesFor(t *testing.T) {
	anything := func(Modes) bool { return true }
	files := func(m Modes) bool { return m.Volume == corev1.PersistentVolumeFilesystem }
	cases := map[string]struct {
		class   *storagev1.StorageClass
		disk    map[string]string
		accept  func(Modes) bool
		want    Modes
		wantErr string
	}{
		"shared block comes first":                           {class: class("rbd.csi.ceph.com"), accept: anything, want: sharedBlock},
		"what is not built is passed over":                   {class: class("rbd.csi.ceph.com"), accept: files, want: nodeFilesystem},
		"unknown storage has file systems for one node":      {class: class("example.com/x"), accept: anything, want: nodeFilesystem},
		"the embedded class that binds at once is shared":    {class: class("local.orlop"), accept: files, want: sharedFilesystem},
		"the embedded class that binds late is a node's":     {class: class("local.orlop", late), accept: files, want: nodeFilesystem},
		"an annotation of the class":                         {class: class("example.com/x", annotated(AccessModeAnnotation, "ReadWriteMany")), accept: anything, want: sharedFilesystem},
		"the disk's annotation beats that of the class":      {class: class("rbd.csi.ceph.com", annotated(VolumeModeAnnotation, "Filesystem")), disk: map[string]string{VolumeModeAnnotation: "Block"}, accept: anything, want: sharedBlock},
		"half an override keeps the best pair that agrees":   {class: class("rbd.csi.ceph.com"), disk: map[string]string{AccessModeAnnotation: "ReadWriteOnce"}, accept: anything, want: nodeBlock},
		"both halves are taken at their word":                {class: class("example.com/x"), disk: map[string]string{AccessModeAnnotation: "ReadWriteMany", VolumeModeAnnotation: "Block"}, accept: anything, want: sharedBlock},
		"an explicit wish is never passed over":              {class: class("rbd.csi.ceph.com"), disk: map[string]string{VolumeModeAnnotation: "Block"}, accept: files, wantErr: "not supported yet"},
		"a misspelt value is an error, not a default":        {class: class("rbd.csi.ceph.com"), disk: map[string]string{VolumeModeAnnotation: "block"}, accept: files, wantErr: `has value "block"`},
		"both halves and still not built":                    {class: class("x"), disk: map[string]string{AccessModeAnnotation: "ReadWriteOnce", VolumeModeAnnotation: "Block"}, accept: files, wantErr: "Block, ReadWriteOnce are not supported yet"},
		"storage without anything that is built tells a way": {class: class("x"), accept: func(Modes) bool { return false }, wantErr: VolumeModeAnnotation},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ModesFor(c.class, c.disk, c.accept)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v, want %q", err, c.wantErr)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("modes %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestProfilesAreOrdered(t *testing.T) {
	rank := map[Modes]int{sharedBlock: 0, sharedFilesystem: 1, nodeBlock: 2, nodeFilesystem: 3}
	for provisioner, modes := range known {
		for i := 1; i < len(modes); i++ {
			if rank[modes[i-1]] >= rank[modes[i]] {
				t.Errorf("%s lists %s before %s", provisioner, modes[i-1], modes[i])
			}
		}
	}
}

func TestName(t *testing.T) {
	now := time.Now()
	list := []storagev1.StorageClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "old", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)), Annotations: map[string]string{DefaultAnnotation: "true"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "b", CreationTimestamp: metav1.NewTime(now), Annotations: map[string]string{DefaultAnnotation: "true"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "a", CreationTimestamp: metav1.NewTime(now), Annotations: map[string]string{DefaultAnnotation: "true"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "plain", CreationTimestamp: metav1.NewTime(now.Add(time.Hour))}},
	}
	cases := map[string]struct {
		spec, module string
		classes      []storagev1.StorageClass
		want         string
	}{
		"the spec wins":                               {"mine", "module", list, "mine"},
		"then the module's default":                   {"", "module", list, "module"},
		"then the newest default, the first by name":  {"", "", list, "a"},
		"without any default there is no class":       {"", "", list[3:], ""},
		"an older default is better than none at all": {"", "", list[:1], "old"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Name(c.spec, Rules{Default: c.module}, c.classes); got != c.want {
				t.Errorf("class %q, want %q", got, c.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	cases := map[string]struct {
		name     string
		class    *storagev1.StorageClass
		explicit bool
		rules    Rules
		want     string
	}{
		"fine":                                 {"class", class("x"), true, Rules{}, ""},
		"no class":                             {"", nil, false, Rules{}, "no default"},
		"unknown":                              {"none", nil, true, Rules{}, `"none" does not exist`},
		"being deleted":                        {"class", class("x", func(c *storagev1.StorageClass) { c.DeletionTimestamp = new(metav1.Now()) }), true, Rules{}, "being deleted"},
		"not allowed":                          {"class", class("x"), true, Rules{Allowed: []string{"other"}}, "not allowed"},
		"allowed":                              {"class", class("x"), true, Rules{Allowed: []string{"class"}}, ""},
		"the list does not bind the default":   {"class", class("x"), false, Rules{Allowed: []string{"other"}}, ""},
		"a module that is gone is not offered": {"class", class("x", func(c *storagev1.StorageClass) { c.Labels["module"] = "local-path-provisioner" }), true, Rules{}, "deprecated"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := Check(c.name, c.class, c.explicit, c.rules)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestWaitsForConsumer(t *testing.T) {
	cases := map[string]struct {
		class *storagev1.StorageClass
		disk  map[string]string
		want  bool
		bad   bool
	}{
		"binds at once":              {class: class("x"), want: false},
		"binds late":                 {class: class("x", late), want: true},
		"late, but the disk insists": {class: class("x", late), disk: map[string]string{BindingModeAnnotation: "Immediate"}, want: false},
		"there is no other override": {class: class("x"), disk: map[string]string{BindingModeAnnotation: "WaitForFirstConsumer"}, bad: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := WaitsForConsumer(c.class, c.disk)
			if (err != nil) != c.bad || got != c.want {
				t.Errorf("%v, %v; want %v, error %v", got, err, c.want, c.bad)
			}
		})
	}
}
