package integration

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"orlop.dev/orlop/internal/testkit"
)

// Manifests that are accepted as they stand; cases change one thing each.
var manifests = map[string]string{
	"VirtualMachine": `
spec:
  virtualMachineClassName: generic
  cpu: {cores: 1}
  memory: {size: 1Gi}
  blockDeviceRefs: [{kind: VirtualDisk, name: root}]
`,
	"VirtualMachineClass": `
spec:
  cpu: {type: Model, model: Nehalem}
`,
	"VirtualMachineOperation": `
spec:
  type: Start
  virtualMachineName: a
`,
	"VirtualDisk": `
spec:
  persistentVolumeClaim: {size: 1Gi}
`,
	"VirtualImage": `
spec:
  storage: ContainerRegistry
  dataSource: {type: HTTP, http: {url: "http://images.example/a.qcow2"}}
`,
	"ClusterVirtualImage": `
spec:
  dataSource: {type: HTTP, http: {url: "http://images.example/a.qcow2"}}
`,
	"VirtualMachineIPAddress": `
spec: {type: Auto}
`,
	"VirtualMachineIPAddressLease": `
spec: {virtualMachineIPAddressRef: {name: a, namespace: b}}
`,
	"VirtualMachineMACAddress": `
spec: {}
`,
	"VirtualMachineMACAddressLease": `
spec: {virtualMachineMACAddressRef: {name: a, namespace: b}}
`,
}

var clusterScoped = map[string]bool{"VirtualMachineClass": true, "ClusterVirtualImage": true, "VirtualMachineIPAddressLease": true,
	"VirtualMachineMACAddressLease": true}

// object makes the manifest of a kind, changed by a merge patch in YAML.
func object(t *testing.T, kind, namespace, patch string) *unstructured.Unstructured {
	t.Helper()
	content, change := map[string]any{}, map[string]any{}
	if err := yaml.Unmarshal([]byte(manifests[kind]), &content); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(patch), &change); err != nil {
		t.Fatalf("read patch %s: %v", patch, err)
	}
	merge(content, map[string]any{"spec": change})
	u := &unstructured.Unstructured{Object: content}
	u.SetAPIVersion("virtualization.deckhouse.io/v1alpha2")
	u.SetKind(kind)
	if !clusterScoped[kind] {
		u.SetNamespace(namespace)
	}
	u.SetGenerateName("a-")
	return u
}

// merge is RFC 7386: null removes.
func merge(into, change map[string]any) {
	for key, value := range change {
		nested, isMap := value.(map[string]any)
		former, wasMap := into[key].(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case isMap && wasMap:
			merge(former, nested)
		default:
			into[key] = value
		}
	}
}

// schemaCase is a change of a manifest and the words with which it is refused; none
// means that it is accepted.
type schemaCase struct{ kind, change, refused string }

func devices(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("{kind: VirtualDisk, name: d%d}", i)
	}
	return "{blockDeviceRefs: [" + strings.Join(list, ", ") + "]}"
}

var schemaCases = map[string]schemaCase{
	"a machine as in the guide":                 {"VirtualMachine", `{}`, ""},
	"a machine without a class":                 {"VirtualMachine", `{virtualMachineClassName: null}`, "virtualMachineClassName"},
	"a machine without cores":                   {"VirtualMachine", `{cpu: {cores: 0}}`, "spec.cpu.cores"},
	"a share of 5%":                             {"VirtualMachine", `{cpu: {coreFraction: 5%}}`, ""},
	"a share left to the platform":              {"VirtualMachine", `{cpu: {coreFraction: Auto}}`, ""},
	"a share of 0%":                             {"VirtualMachine", `{cpu: {coreFraction: 0%}}`, "coreFraction"},
	"a share of 101%":                           {"VirtualMachine", `{cpu: {coreFraction: 101%}}`, "coreFraction"},
	"memory as a bare number":                   {"VirtualMachine", `{memory: {size: 1073741824}}`, "spec.memory.size"},
	"memory that is no quantity":                {"VirtualMachine", `{memory: {size: much}}`, "spec.memory.size"},
	"no block device":                           {"VirtualMachine", `{blockDeviceRefs: []}`, "blockDeviceRefs"},
	"16 block devices":                          {"VirtualMachine", devices(16), ""},
	"17 block devices":                          {"VirtualMachine", devices(17), "blockDeviceRefs"},
	"a block device of another kind":            {"VirtualMachine", `{blockDeviceRefs: [{kind: Secret, name: a}]}`, "blockDeviceRefs[0].kind"},
	"a block device without a name":             {"VirtualMachine", `{blockDeviceRefs: [{kind: VirtualDisk, name: ""}]}`, "blockDeviceRefs[0].name"},
	"boot order 0":                              {"VirtualMachine", `{blockDeviceRefs: [{kind: VirtualDisk, name: a, bootOrder: 0}]}`, "bootOrder"},
	"an unknown run policy":                     {"VirtualMachine", `{runPolicy: Sometimes}`, "runPolicy"},
	"an unknown guest type":                     {"VirtualMachine", `{osType: Plan9}`, "osType"},
	"an unknown firmware":                       {"VirtualMachine", `{bootloader: U-Boot}`, "bootloader"},
	"an unknown migration policy":               {"VirtualMachine", `{liveMigrationPolicy: Never}`, "liveMigrationPolicy"},
	"an unknown approval mode":                  {"VirtualMachine", `{disruptions: {restartApprovalMode: Maybe}}`, "restartApprovalMode"},
	"legacy with BIOS":                          {"VirtualMachine", `{osType: Legacy, bootloader: BIOS}`, ""},
	"legacy with EFI":                           {"VirtualMachine", `{osType: Legacy, bootloader: EFI}`, "only with bootloader BIOS"},
	"legacy with first-boot data":               {"VirtualMachine", `{osType: Legacy, provisioning: {type: UserData, userData: a}}`, "provisioning is not possible"},
	"legacy, 4 devices without virtio":          {"VirtualMachine", `{osType: Legacy, enableParavirtualization: false, ` + devices(4)[1:], ""},
	"legacy, 5 devices without virtio":          {"VirtualMachine", `{osType: Legacy, enableParavirtualization: false, ` + devices(5)[1:], "at most 4"},
	"legacy, 5 devices with virtio":             {"VirtualMachine", `{osType: Legacy, ` + devices(5)[1:], ""},
	"user data":                                 {"VirtualMachine", `{provisioning: {type: UserData, userData: "#cloud-config"}}`, ""},
	"user data of 2048 characters":              {"VirtualMachine", `{provisioning: {type: UserData, userData: "` + strings.Repeat("a", 2048) + `"}}`, ""},
	"user data of 2049 characters":              {"VirtualMachine", `{provisioning: {type: UserData, userData: "` + strings.Repeat("a", 2049) + `"}}`, "userData"},
	"type UserData without data":                {"VirtualMachine", `{provisioning: {type: UserData}}`, "if and only if type is UserData"},
	"user data of another type":                 {"VirtualMachine", `{provisioning: {type: UserDataRef, userData: a, userDataRef: {name: a}}}`, "if and only if type is UserData"},
	"a reference to user data":                  {"VirtualMachine", `{provisioning: {type: UserDataRef, userDataRef: {name: a}}}`, ""},
	"a reference to something else":             {"VirtualMachine", `{provisioning: {type: UserDataRef, userDataRef: {kind: ConfigMap, name: a}}}`, "userDataRef.kind"},
	"a reference without a name":                {"VirtualMachine", `{provisioning: {type: UserDataRef, userDataRef: {name: ""}}}`, "userDataRef.name"},
	"a reference of another type":               {"VirtualMachine", `{provisioning: {type: SysprepRef, userDataRef: {name: a}, sysprepRef: {name: a}}}`, "if and only if type is UserDataRef"},
	"an answer file":                            {"VirtualMachine", `{provisioning: {type: SysprepRef, sysprepRef: {name: a}}}`, ""},
	"type SysprepRef without a reference":       {"VirtualMachine", `{provisioning: {type: SysprepRef}}`, "if and only if type is SysprepRef"},
	"a network of an unknown type":              {"VirtualMachine", `{networks: [{type: Bridge}]}`, "networks[0].type"},
	"9 USB devices":                             {"VirtualMachine", `{usbDevices: [{name: a},{name: b},{name: c},{name: d},{name: e},{name: f},{name: g},{name: h},{name: i}]}`, "usbDevices"},
	"a GPU class with capitals":                 {"VirtualMachine", `{gpus: [{gpuClassName: A100}]}`, "gpuClassName"},
	"near other machines":                       {"VirtualMachine", `{affinity: {virtualMachineAndPodAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}]}}}`, ""},
	"a weight of 101":                           {"VirtualMachine", `{affinity: {virtualMachineAndPodAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 101, virtualMachineAndPodAffinityTerm: {topologyKey: a}}]}}}`, "weight"},
	"a spread that nobody knows":                {"VirtualMachine", `{topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: Whatever}]}`, "whenUnsatisfiable"},
	"a field that does not exist":               {"VirtualMachine", `{cpus: 4}`, `unknown field "spec.cpus"`},
	"a class of type Host":                      {"VirtualMachineClass", `{cpu: {type: Host, model: null}}`, ""},
	"a class of type Host with a model":         {"VirtualMachineClass", `{cpu: {type: Host}}`, "not possible with type Host"},
	"passthrough with features":                 {"VirtualMachineClass", `{cpu: {type: HostPassthrough, model: null, features: [vmx]}}`, "not possible with type Host"},
	"discovery":                                 {"VirtualMachineClass", `{cpu: {type: Discovery, model: null, discovery: {nodeSelector: {matchLabels: {a: b}}}}}`, ""},
	"discovery with a model":                    {"VirtualMachineClass", `{cpu: {type: Discovery}}`, "not possible with type Discovery"},
	"a model without a name":                    {"VirtualMachineClass", `{cpu: {type: Model, model: null}}`, "requires model"},
	"a model with features":                     {"VirtualMachineClass", `{cpu: {type: Model, features: [vmx]}}`, "allows neither features nor discovery"},
	"features":                                  {"VirtualMachineClass", `{cpu: {type: Features, model: null, features: [vmx]}}`, ""},
	"features without a list":                   {"VirtualMachineClass", `{cpu: {type: Features, model: null}}`, "requires features"},
	"an empty list of features":                 {"VirtualMachineClass", `{cpu: {type: Features, model: null, features: []}}`, "features"},
	"a sizing policy":                           {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4, step: 2}, coreFractions: [5, 100], defaultCoreFraction: 100, memory: {min: 1Gi, max: 8Gi, step: 1Gi, perCore: {min: 1Gi, max: 2Gi}}}]}`, ""},
	"a policy without cores":                    {"VirtualMachineClass", `{sizingPolicies: [{coreFractions: [5]}]}`, "cores"},
	"a range of one":                            {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 4, max: 4}}]}`, "max must be greater than min"},
	"a step as large as the range":              {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4, step: 4}}]}`, "max must be greater than step"},
	"more cores than possible":                  {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 1025}}]}`, "cores.max"},
	"17 policies":                               {"VirtualMachineClass", `{sizingPolicies: [` + strings.TrimSuffix(strings.Repeat("{cores: {min: 1, max: 2}},", 17), ",") + `]}`, "sizingPolicies"},
	"a share of 0 in a policy":                  {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4}, coreFractions: [0]}]}`, "coreFractions"},
	"the default share Auto":                    {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4}, defaultCoreFraction: Auto}]}`, ""},
	"a default share of 101":                    {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4}, defaultCoreFraction: 101}]}`, "from 1 to 100 or Auto"},
	"a default share in words":                  {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4}, defaultCoreFraction: half}]}`, "from 1 to 100 or Auto"},
	"stop by force":                             {"VirtualMachineOperation", `{type: Stop, force: true}`, ""},
	"start by force":                            {"VirtualMachineOperation", `{type: Start, force: true}`, "force is not possible"},
	"start without force":                       {"VirtualMachineOperation", `{type: Start, force: false}`, ""},
	"an unknown operation":                      {"VirtualMachineOperation", `{type: Explode}`, "spec.type"},
	"an operation on nothing":                   {"VirtualMachineOperation", `{virtualMachineName: ""}`, "virtualMachineName"},
	"restore":                                   {"VirtualMachineOperation", `{type: Restore, restore: {mode: Strict, virtualMachineSnapshotName: a}}`, ""},
	"restore of nothing":                        {"VirtualMachineOperation", `{type: Restore}`, "restore is required"},
	"clone with a prefix":                       {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict, customization: {namePrefix: a}}}`, ""},
	"clone with a replacement":                  {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict, nameReplacement: [{from: {name: a}, to: b}]}}`, ""},
	"clone without new names":                   {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict}}`, "at least one nameReplacement"},
	"clone without parameters":                  {"VirtualMachineOperation", `{type: Clone}`, "clone is required"},
	"clone with a prefix of 60":                 {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict, customization: {namePrefix: ` + strings.Repeat("a", 60) + `}}}`, "namePrefix"},
	"clone with an empty suffix":                {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict, customization: {nameSuffix: ""}}}`, "nameSuffix"},
	"clone with a replacement of 60":            {"VirtualMachineOperation", `{type: Clone, clone: {mode: Strict, nameReplacement: [{from: {name: a}, to: ` + strings.Repeat("a", 60) + `}]}}`, "nameReplacement[0].to"},
	"a move to chosen nodes":                    {"VirtualMachineOperation", `{type: Migrate, migrate: {nodeSelector: {a: b}}}`, ""},
	"a start on chosen nodes":                   {"VirtualMachineOperation", `{type: Start, migrate: {nodeSelector: {a: b}}}`, "only with type Migrate"},
	"an empty disk":                             {"VirtualDisk", `{}`, ""},
	"a disk from an image":                      {"VirtualDisk", `{dataSource: {type: ObjectRef, objectRef: {kind: VirtualImage, name: a}}}`, ""},
	"a disk from a disk":                        {"VirtualDisk", `{dataSource: {type: ObjectRef, objectRef: {kind: VirtualDisk, name: a}}}`, "objectRef.kind"},
	"a disk from an object without a name":      {"VirtualDisk", `{dataSource: {type: ObjectRef, objectRef: {kind: VirtualImage, name: ""}}}`, "objectRef.name"},
	"a disk size that is none":                  {"VirtualDisk", `{persistentVolumeClaim: {size: big}}`, "size"},
	"a disk source without its block":           {"VirtualDisk", `{dataSource: {type: HTTP}}`, "http must be set"},
	"a disk source with two blocks":             {"VirtualDisk", `{dataSource: {type: HTTP, http: {url: "http://a/b"}, objectRef: {kind: VirtualImage, name: a}}}`, "objectRef must be set"},
	"a disk source without a type":              {"VirtualDisk", `{dataSource: {http: {url: "http://a/b"}}}`, "http must be set"},
	"a disk to upload":                          {"VirtualDisk", `{dataSource: {type: Upload}}`, ""},
	"an image from https":                       {"VirtualImage", `{dataSource: {http: {url: "https://a.example/b.img.xz"}}}`, ""},
	"an image from ftp":                         {"VirtualImage", `{dataSource: {http: {url: "ftp://a.example/b.img"}}}`, "http.url"},
	"an image with a checksum":                  {"VirtualImage", `{dataSource: {http: {checksum: {sha256: ` + strings.Repeat("a", 64) + `}}}}`, ""},
	"a checksum that is too short":              {"VirtualImage", `{dataSource: {http: {checksum: {sha256: ` + strings.Repeat("a", 63) + `}}}}`, "sha256"},
	"a checksum with other letters":             {"VirtualImage", `{dataSource: {http: {checksum: {md5: ` + strings.Repeat("z", 32) + `}}}}`, "md5"},
	"streebog":                                  {"VirtualImage", `{dataSource: {http: {checksum: {streebog256: ` + strings.Repeat("a", 64) + `, streebog512: ` + strings.Repeat("a", 128) + `}}}}`, ""},
	"an image without a source":                 {"VirtualImage", `{dataSource: null}`, "dataSource"},
	"an image somewhere else":                   {"VirtualImage", `{storage: Attic}`, "storage"},
	"an image on a volume, old name":            {"VirtualImage", `{storage: Kubernetes}`, ""},
	"an image from a container image":           {"VirtualImage", `{dataSource: {type: ContainerImage, http: null, containerImage: {image: "registry.example.com:5000/a/b:c"}}}`, ""},
	"a container image by digest":               {"VirtualImage", `{dataSource: {type: ContainerImage, http: null, containerImage: {image: "docker.io/a/b@sha256:` + strings.Repeat("0", 64) + `"}}}`, ""},
	"a container image with blanks":             {"VirtualImage", `{dataSource: {type: ContainerImage, http: null, containerImage: {image: "a b"}}}`, "containerImage.image"},
	"an image from a disk":                      {"VirtualImage", `{dataSource: {type: ObjectRef, http: null, objectRef: {kind: VirtualDisk, name: a}}}`, ""},
	"an upload with http":                       {"VirtualImage", `{dataSource: {type: Upload}}`, "http must be set"},
	"an upload with a checksum":                 {"VirtualImage", `{dataSource: {type: Upload, http: null, upload: {checksum: {md5: "` + strings.Repeat("0", 32) + `"}}}}`, ""},
	"upload parameters of another type":         {"VirtualImage", `{dataSource: {upload: {}}}`, "upload may be set only"},
	"a cluster image":                           {"ClusterVirtualImage", `{}`, ""},
	"a cluster image without a type":            {"ClusterVirtualImage", `{dataSource: {type: null}}`, "type"},
	"a cluster image from an image":             {"ClusterVirtualImage", `{dataSource: {type: ObjectRef, http: null, objectRef: {kind: VirtualImage, name: a, namespace: b}}}`, ""},
	"a cluster image from nowhere":              {"ClusterVirtualImage", `{dataSource: {type: ObjectRef, http: null, objectRef: {kind: VirtualDisk, name: a}}}`, "namespace is required"},
	"a namespace that is too long":              {"ClusterVirtualImage", `{dataSource: {type: ObjectRef, http: null, objectRef: {kind: VirtualDisk, name: a, namespace: ` + strings.Repeat("a", 64) + `}}}`, "namespace is required"},
	"a cluster image from a cluster image":      {"ClusterVirtualImage", `{dataSource: {type: ObjectRef, http: null, objectRef: {kind: ClusterVirtualImage, name: a}}}`, ""},
	"a pull secret elsewhere":                   {"ClusterVirtualImage", `{dataSource: {type: ContainerImage, http: null, containerImage: {image: a/b, imagePullSecret: {name: a, namespace: b}}}}`, ""},
	"a container image and http":                {"ClusterVirtualImage", `{dataSource: {containerImage: {image: a/b}}}`, "containerImage must be set"},
	"a cluster upload":                          {"ClusterVirtualImage", `{dataSource: {type: Upload, http: null}}`, ""},
	"cluster upload parameters of another type": {"ClusterVirtualImage", `{dataSource: {upload: {}}}`, "upload may be set only"},
	"an address":                                {"VirtualMachineIPAddress", `{}`, ""},
	"a static address":                          {"VirtualMachineIPAddress", `{type: Static, staticIP: 10.66.10.14}`, ""},
	"an address of another type":                {"VirtualMachineIPAddress", `{type: Dynamic}`, "spec.type"},
	"an address without a type":                 {"VirtualMachineIPAddress", `{type: null}`, "spec.type"},
	"a lease":                                   {"VirtualMachineIPAddressLease", `{}`, ""},
	"a lease without a holder's namespace":      {"VirtualMachineIPAddressLease", `{virtualMachineIPAddressRef: {namespace: null}}`, "namespace"},
	"a hardware address":                        {"VirtualMachineMACAddress", `{}`, ""},
	"a chosen hardware address":                 {"VirtualMachineMACAddress", `{address: "5e:e6:19:22:0f:d8"}`, ""},
	"one in capitals with dashes":               {"VirtualMachineMACAddress", `{address: 5E-E6-19-22-0F-D8}`, ""},
	"one of five bytes":                         {"VirtualMachineMACAddress", `{address: "5e:e6:19:22:0f"}`, "spec.address"},
	"one with other letters":                    {"VirtualMachineMACAddress", `{address: "5e:e6:19:22:0f:dg"}`, "spec.address"},
	"one without separators":                    {"VirtualMachineMACAddress", `{address: 5ee619220fd8}`, "spec.address"},
	"a lease of a hardware address":             {"VirtualMachineMACAddressLease", `{}`, ""},
	"one without a holder's name":               {"VirtualMachineMACAddressLease", `{virtualMachineMACAddressRef: {name: null}}`, "name"},
}

func TestSchema(t *testing.T) {
	server := testkit.API(t)
	c, namespace := server.Client(t), server.Namespace(t)
	for name, test := range schemaCases {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), object(t, test.kind, namespace, test.change), client.DryRunAll, client.FieldValidation("Strict"))
			switch {
			case test.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.refused != "" && err == nil:
				t.Errorf("accepted, should be refused with %q", test.refused)
			case test.refused != "" && !strings.Contains(err.Error(), test.refused):
				t.Errorf("refused with %v, want %q", err, test.refused)
			}
		})
	}
}

func TestImmutableFields(t *testing.T) {
	server := testkit.API(t)
	c, namespace := server.Client(t), server.Namespace(t)
	tests := map[string]schemaCase{
		"an operation says one thing for ever": {"VirtualMachineOperation", `{type: Stop}`, "spec is immutable"},
		"an operation cannot be forced later":  {"VirtualMachineOperation", `{type: Stop, force: true}`, "immutable"},
		"an operation written again as it is":  {"VirtualMachineOperation", `{}`, ""},
		"the processor of a class stays":       {"VirtualMachineClass", `{cpu: {model: Westmere}}`, "spec.cpu is immutable"},
		"the sizes of a class may change":      {"VirtualMachineClass", `{sizingPolicies: [{cores: {min: 1, max: 4}}]}`, ""},
		"a machine may change its size":        {"VirtualMachine", `{cpu: {cores: 2}}`, ""},
		"a class may be used by more nodes":    {"VirtualMachineClass", `{nodeSelector: {matchLabels: {a: b}}}`, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			u := object(t, test.kind, namespace, `{}`)
			if err := c.Create(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = server.Client(t).Delete(t.Context(), u) })
			u.Object["spec"] = object(t, test.kind, namespace, test.change).Object["spec"]
			err := c.Update(t.Context(), u)
			if test.refused == "" && err != nil || test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)) {
				t.Errorf("update says %v, want %q", err, test.refused)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	server := testkit.API(t)
	c, namespace := server.Client(t), server.Namespace(t)
	vm := object(t, "VirtualMachine", namespace, `{provisioning: {type: UserDataRef, userDataRef: {name: a}}}`)
	if err := c.Create(t.Context(), vm, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"runPolicy": "AlwaysOnUnlessStoppedManually", "terminationGracePeriodSeconds": int64(60), "enableParavirtualization": true,
		"osType": "Generic", "bootloader": "BIOS", "liveMigrationPolicy": "PreferSafe",
	}
	spec := vm.Object["spec"].(map[string]any)
	for field, value := range want {
		if spec[field] != value {
			t.Errorf("spec.%s is %v, want %v", field, spec[field], value)
		}
	}
	if mode, _, _ := unstructured.NestedString(spec, "disruptions", "restartApprovalMode"); mode != "Manual" {
		t.Errorf("restartApprovalMode is %q", mode)
	}
	if kind, _, _ := unstructured.NestedString(spec, "provisioning", "userDataRef", "kind"); kind != "Secret" {
		t.Errorf("kind of userDataRef is %q", kind)
	}
	image := object(t, "VirtualImage", namespace, `{storage: null}`)
	if err := c.Create(t.Context(), image, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if storage, _, _ := unstructured.NestedString(image.Object, "spec", "storage"); storage != "ContainerRegistry" {
		t.Errorf("storage is %q", storage)
	}
}
