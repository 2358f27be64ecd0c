package admission

import (
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/testkit"
)

// validator sees one good class, one deprecated one and an image of 2 GiB.
func validator() *Disk {
	old := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "old", Labels: map[string]string{"module": "local-path-provisioner"}}}
	good := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "good"}}
	image := testkit.Image("debian").Object()
	image.Status.Size.UnpackedBytes = "2147483648"
	iso := testkit.Image("iso").Object()
	iso.Status.Size.UnpackedBytes, iso.Status.CDROM = "1024", true
	return &Disk{Reader: fake.NewClientBuilder().WithScheme(testkit.Scheme()).WithObjects(old, good, image, iso).Build()}
}

func TestDiskCreate(t *testing.T) {
	cases := map[string]struct {
		disk          *testkit.DiskBuilder
		wantErr, warn string
	}{
		"a blank disk":                           {disk: testkit.Disk("a").Size("1Gi")},
		"a disk from an image without size":      {disk: testkit.Disk("a").FromImage("debian")},
		"a disk may come before its image":       {disk: testkit.Disk("a").FromImage("none")},
		"dots end up in names that allow none":   {disk: testkit.Disk("a.b").Size("1Gi"), wantErr: "contains a dot"},
		"zero is no size":                        {disk: testkit.Disk("a").Size("0"), wantErr: "greater than zero"},
		"a blank disk without size":              {disk: testkit.Disk("a"), wantErr: "is required"},
		"a named class must exist":               {disk: testkit.Disk("a").Size("1Gi").StorageClass("none"), wantErr: `"none" does not exist`},
		"a named class may not be deprecated":    {disk: testkit.Disk("a").Size("1Gi").StorageClass("old"), wantErr: "deprecated"},
		"a named class that is fine":             {disk: testkit.Disk("a").Size("1Gi").StorageClass("good")},
		"too small for its image: can be raised": {disk: testkit.Disk("a").FromImage("debian").Size("1Gi"), warn: "smaller than VirtualImage debian, which needs 2Gi"},
		"a disk from an ISO is odd":              {disk: testkit.Disk("a").FromImage("iso").Size("1Gi"), warn: "ISO image"},
		"HTTP is not built yet": {disk: testkit.Disk("a").With(func(d *v1alpha2.VirtualDisk) {
			d.Spec.DataSource = &v1alpha2.VirtualDiskDataSource{Type: v1alpha2.DataSourceHTTP, HTTP: &v1alpha2.DataSourceHTTPSource{URL: "http://x/y"}}
		}), wantErr: "not supported for disks yet"},
		"snapshots are not built yet": {disk: testkit.Disk("a").FromImage("x").With(func(d *v1alpha2.VirtualDisk) {
			d.Spec.DataSource.ObjectRef.Kind = v1alpha2.VirtualDiskFromVirtualDiskSnapshot
		}), wantErr: "not supported yet"},
		"block volumes are not built yet": {disk: testkit.Disk("a").Size("1Gi").With(func(d *v1alpha2.VirtualDisk) {
			d.Annotations = map[string]string{v1alpha2.AnnotationVolumeMode: "Block"}
		}), wantErr: "not supported yet"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			warnings, err := validator().ValidateCreate(t.Context(), c.disk.Object())
			check(t, warnings, err, c.warn, c.wantErr)
		})
	}
}

func TestDiskUpdate(t *testing.T) {
	phase := func(p v1alpha2.DiskPhase) func(*v1alpha2.VirtualDisk) {
		return func(d *v1alpha2.VirtualDisk) { d.Status.Phase = p }
	}
	block := func(d *v1alpha2.VirtualDisk) {
		d.Annotations = map[string]string{v1alpha2.AnnotationVolumeMode: "Block"}
	}
	cases := map[string]struct {
		old, disk     *testkit.DiskBuilder
		wantErr, warn string
	}{
		"nothing changed, although what is there is refused today": {
			old: testkit.Disk("a.b").Size("0").With(block), disk: testkit.Disk("a.b").Size("0").With(block),
		},
		"a pending disk may shrink":   {old: testkit.Disk("a").Size("2Gi").With(phase(v1alpha2.DiskPending)), disk: testkit.Disk("a").Size("1Gi")},
		"a ready disk may not shrink": {old: testkit.Disk("a").Size("2Gi").With(phase(v1alpha2.DiskReady)), disk: testkit.Disk("a").Size("1Gi"), wantErr: "only grows"},
		"a ready disk may grow":       {old: testkit.Disk("a").Size("2Gi").With(phase(v1alpha2.DiskReady)), disk: testkit.Disk("a").Size("3Gi")},
		"a growing disk may grow on":  {old: testkit.Disk("a").Size("2Gi").With(phase(v1alpha2.DiskResizing)), disk: testkit.Disk("a").Size("3Gi")},
		"a lost disk may not":         {old: testkit.Disk("a").Size("2Gi").With(phase(v1alpha2.DiskPVCLost)), disk: testkit.Disk("a").Size("3Gi"), wantErr: "can not be changed in phase"},
		"the size of a failed disk is raised": {
			old: testkit.Disk("a").FromImage("debian").Size("1Gi").With(phase(v1alpha2.DiskFailed)), disk: testkit.Disk("a").FromImage("debian").Size("2Gi"),
		},
		"a ready disk keeps its size": {old: testkit.Disk("a").FromImage("debian").Size("2Gi").With(phase(v1alpha2.DiskReady)), disk: testkit.Disk("a").FromImage("debian"), wantErr: "can not be removed"},
		"naming the size it has changes nothing": {
			old: testkit.Disk("a").FromImage("debian").With(phase(v1alpha2.DiskReady)).With(func(d *v1alpha2.VirtualDisk) { d.Status.Capacity = "2Gi" }), disk: testkit.Disk("a").FromImage("debian").Size("2Gi"),
		},
		"the source of a ready disk is fixed": {old: testkit.Disk("a").FromImage("debian").With(phase(v1alpha2.DiskReady)), disk: testkit.Disk("a").FromImage("other"), wantErr: "can not be changed in phase Ready"},
		"the source of a pending disk is not": {old: testkit.Disk("a").FromImage("debian").With(phase(v1alpha2.DiskPending)), disk: testkit.Disk("a").FromImage("other")},
		"moving a disk is not built yet": {
			old: testkit.Disk("a").Size("1Gi").With(phase(v1alpha2.DiskReady)), disk: testkit.Disk("a").Size("1Gi").StorageClass("good"), wantErr: "not supported yet",
		},
		"naming the class it has moves nothing": {
			old:  testkit.Disk("a").Size("1Gi").With(phase(v1alpha2.DiskReady)).With(func(d *v1alpha2.VirtualDisk) { d.Status.StorageClassName = "good" }),
			disk: testkit.Disk("a").Size("1Gi").StorageClass("good"),
		},
		"a pending disk may get another class": {old: testkit.Disk("a").Size("1Gi").With(phase(v1alpha2.DiskPending)), disk: testkit.Disk("a").Size("1Gi").StorageClass("good")},
		"a disk being deleted is left alone": {
			old: testkit.Disk("a").Size("1Gi"), disk: testkit.Disk("a").Size("2Gi").With(func(d *v1alpha2.VirtualDisk) { d.DeletionTimestamp = new(metav1.Now()) }), wantErr: "being deleted",
		},
		"finalizers of a disk being deleted can be dropped": {
			old: testkit.Disk("a").Size("1Gi"), disk: testkit.Disk("a").Size("1Gi").With(func(d *v1alpha2.VirtualDisk) { d.DeletionTimestamp = new(metav1.Now()) }).With(block),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			warnings, err := validator().ValidateUpdate(t.Context(), c.old.Object(), c.disk.Object())
			check(t, warnings, err, c.warn, c.wantErr)
		})
	}
}

func TestImage(t *testing.T) {
	ready := func(i *v1alpha2.VirtualImage) { i.Status.Phase = v1alpha2.ImageReady }
	url := func(url string) func(*v1alpha2.VirtualImage) {
		return func(i *v1alpha2.VirtualImage) { i.Spec.DataSource.HTTP.URL = url }
	}
	onVolume := func(i *v1alpha2.VirtualImage) { i.Spec.Storage = v1alpha2.StoragePersistentVolumeClaim }
	upload := func(i *v1alpha2.VirtualImage) {
		i.Spec.DataSource = v1alpha2.VirtualImageDataSource{Type: v1alpha2.DataSourceUpload}
	}
	image := func(changes ...func(*v1alpha2.VirtualImage)) *v1alpha2.VirtualImage {
		i := testkit.Image("a").Object()
		for _, change := range changes {
			change(i)
		}
		return i
	}
	cases := map[string]struct {
		old, image *v1alpha2.VirtualImage
		wantErr    string
	}{
		"a new one":                        {image: image()},
		"upload is not built yet":          {image: image(upload), wantErr: "not supported yet"},
		"volumes are not built yet":        {image: image(onVolume), wantErr: "not supported yet"},
		"another URL before it is ready":   {old: image(), image: image(url("http://x/y"))},
		"another URL once it is ready":     {old: image(ready), image: image(ready, url("http://x/y")), wantErr: "can not be changed"},
		"unchanged, although refused anew": {old: image(upload, onVolume), image: image(upload, onVolume)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var err error
			if c.old == nil {
				_, err = (&Image{}).ValidateCreate(t.Context(), c.image)
			} else {
				_, err = (&Image{}).ValidateUpdate(t.Context(), c.old, c.image)
			}
			check(t, nil, err, "", c.wantErr)
		})
	}
}

func check(t *testing.T, warnings []string, err error, wantWarning, wantErr string) {
	t.Helper()
	if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
		t.Errorf("error %v, want %q", err, wantErr)
	}
	if all := strings.Join(warnings, "\n"); wantWarning == "" && all != "" || !strings.Contains(all, wantWarning) {
		t.Errorf("warnings %q, want %q", all, wantWarning)
	}
}
