package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
)

// namespace holds the benchmark's objects.
const namespace = "orlop-bench"

// patience bounds every wait for the platform.
const patience = 5 * time.Minute

// platform is the cluster with an image and a disk that are ready.
type platform struct {
	client client.Client
	close  func()
}

// prepare serves the tiny guest, imports it and makes a disk from it.
func prepare(ctx context.Context, root, cluster string) (*platform, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha2.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster (run `make up` first): %w", err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	url, stop, err := serve(ctx, root, cluster)
	if err != nil {
		return nil, err
	}
	p := &platform{client: api, close: stop}
	if err := p.makeDisk(ctx, url); err != nil {
		p.remove()
		return nil, err
	}
	return p, nil
}

// serve offers the guests to the cluster's pods.
func serve(ctx context.Context, root, cluster string) (string, func(), error) {
	output, err := exec.CommandContext(ctx, filepath.Join(root, "bin", "d8"), "cluster", "status", "--name", cluster, "-o", "json").Output()
	if err != nil {
		return "", nil, fmt.Errorf("ask for the cluster's status: %w", err)
	}
	var status struct {
		HostAddress string `json:"hostAddress"`
	}
	if err := json.Unmarshal(output, &status); err != nil {
		return "", nil, fmt.Errorf("read the cluster's status: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(status.HostAddress, "0"))
	if err != nil {
		return "", nil, fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(root, "bin", "guests"))), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return "http://" + listener.Addr().String() + "/tiny.qcow2", func() { _ = server.Close() }, nil
}

func (p *platform) makeDisk(ctx context.Context, url string) error {
	size := resource.MustParse("512Mi")
	meta := metav1.ObjectMeta{Namespace: namespace, Name: "tiny"}
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&v1alpha2.VirtualImage{ObjectMeta: meta, Spec: v1alpha2.VirtualImageSpec{
			Storage:    v1alpha2.StorageContainerRegistry,
			DataSource: v1alpha2.VirtualImageDataSource{Type: v1alpha2.DataSourceHTTP, HTTP: &v1alpha2.DataSourceHTTPSource{URL: url}},
		}},
		&v1alpha2.VirtualDisk{ObjectMeta: meta, Spec: v1alpha2.VirtualDiskSpec{
			PersistentVolumeClaim: v1alpha2.VirtualDiskPersistentVolumeClaim{Size: &size},
			DataSource: &v1alpha2.VirtualDiskDataSource{Type: v1alpha2.DataSourceObjectRef,
				ObjectRef: &v1alpha2.VirtualDiskObjectRef{Kind: "VirtualImage", Name: "tiny"}},
		}},
	}
	for _, object := range objects {
		if err := p.client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create %s: %w", object.GetName(), err)
		}
	}
	var disk v1alpha2.VirtualDisk
	return p.until(ctx, &disk, "tiny", func() bool { return disk.Status.Phase == v1alpha2.DiskReady })
}

// until waits for an object to satisfy a check, looking twice a second.
func (p *platform) until(ctx context.Context, object client.Object, name string, check func() bool) error {
	return wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		if err := p.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		return check(), nil
	})
}

// start creates a machine, waits for its userspace, weighs its pod and deletes it.
func (p *platform) start(ctx context.Context) (time.Duration, int64, error) {
	vm := &v1alpha2.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "tiny"},
		Spec: v1alpha2.VirtualMachineSpec{
			VirtualMachineClassName: "generic",
			CPU:                     v1alpha2.CPUSpec{Cores: 1, CoreFraction: "10%"},
			Memory:                  v1alpha2.MemorySpec{Size: resource.MustParse("256Mi")},
			BlockDeviceRefs:         []v1alpha2.BlockDeviceSpecRef{{Kind: v1alpha2.DiskDevice, Name: "tiny"}},
		},
	}
	known, err := qemuProcesses()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := p.client.Create(ctx, vm); err != nil {
		return 0, 0, fmt.Errorf("create machine: %w", err)
	}
	process, err := waitForQEMU(ctx, known)
	if err == nil {
		err = process.waitForUserspace(ctx)
	}
	took := time.Since(began)
	var pss int64
	if err == nil {
		pss, err = process.beyondQEMU()
	}
	return took, pss, errors.Join(err, p.delete(ctx, vm))
}

func (p *platform) delete(ctx context.Context, vm *v1alpha2.VirtualMachine) error {
	stop := &v1alpha2.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "stop-"},
		Spec:       v1alpha2.VirtualMachineOperationSpec{Type: v1alpha2.OperationStop, VirtualMachineName: vm.Name, Force: new(true)},
	}
	if err := p.client.Create(ctx, stop); err != nil {
		return fmt.Errorf("stop machine: %w", err)
	}
	if err := p.until(ctx, vm, vm.Name, func() bool { return vm.Status.Phase == v1alpha2.MachineStopped }); err != nil {
		return fmt.Errorf("wait for the machine to stop: %w", err)
	}
	if err := p.client.Delete(ctx, vm); err != nil {
		return fmt.Errorf("delete machine: %w", err)
	}
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := p.client.Get(ctx, client.ObjectKeyFromObject(vm), vm)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}

// remove deletes what prepare made.
func (p *platform) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = p.client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	p.close()
}
