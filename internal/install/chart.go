package install

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/charts/virtualization"
	"orlop.dev/orlop/internal/settings"
)

// Names in the chart.
const (
	release     = "virtualization"
	apiService  = "v1alpha2.subresources.virtualization.deckhouse.io"
	webhookName = "virtualization-controller"
	caSecret    = "virtualization-ca"
	// helmTimeout bounds single steps of Helm; the whole installation has its own limit.
	helmTimeout = 2 * time.Minute
	// history is how many revisions of the release are kept.
	history = 5
)

// values are the chart's values.
type values struct {
	Images struct {
		Registry    string   `json:"registry"`
		Version     string   `json:"version"`
		PullSecrets []string `json:"pullSecrets"`
	} `json:"images"`
	Replicas int    `json:"replicas"`
	LogLevel string `json:"logLevel"`
	// LogFormat is "text" or "json".
	LogFormat string `json:"logFormat"`
	DVCR      struct {
		Size             string `json:"size"`
		StorageClassName string `json:"storageClassName"`
	} `json:"dvcr"`
	Network struct {
		NodeCIDRs     []string `json:"nodeCIDRs"`
		PodCIDR       string   `json:"podCIDR"`
		ServiceCIDR   string   `json:"serviceCIDR"`
		ClusterDomain string   `json:"clusterDomain"`
		ClusterDNS    []string `json:"clusterDNS"`
	} `json:"network"`
	Webhooks struct {
		Enabled  bool   `json:"enabled"`
		CABundle string `json:"caBundle"`
	} `json:"webhooks"`
}

// asMap is what Helm wants.
func (v *values) asMap() (map[string]any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("bug: encode values: %w", err)
	}
	var result map[string]any
	if err := json.Unmarshal(data, &result); err != nil {
		return nil, fmt.Errorf("bug: decode values: %w", err)
	}
	return result, nil
}

// chart installs the embedded chart as one Helm release.
type chart struct {
	config *action.Configuration
	chart  *chartv2.Chart
}

func newChart(getter genericclioptions.RESTClientGetter, version string) (*chart, error) {
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := config.Init(getter, settings.Namespace, "secret"); err != nil {
		return nil, fmt.Errorf("prepare Helm: %w", err)
	}
	loaded, err := loadChart()
	if err != nil {
		return nil, err
	}
	loaded.Metadata.AppVersion = version
	return &chart{config: config, chart: loaded}, nil
}

// loadChart reads the chart out of this program.
func loadChart() (*chartv2.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(virtualization.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := virtualization.Files.ReadFile(path)
		if err != nil {
			return err
		}
		files = append(files, &archive.BufferedFile{Name: path, Data: bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("bug: read embedded chart: %w", err)
	}
	loaded, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("bug: load embedded chart: %w", err)
	}
	return loaded, nil
}

// apply installs or upgrades the release; it does not wait for the workloads.
func (c *chart) apply(ctx context.Context, v *values) error {
	content, err := v.asMap()
	if err != nil {
		return err
	}
	if err := c.unlock(); err != nil {
		return err
	}
	exists, err := c.exists()
	if err != nil {
		return err
	}
	if !exists {
		install := action.NewInstall(c.config)
		install.ReleaseName, install.Namespace = release, settings.Namespace
		install.WaitStrategy, install.Timeout = kube.HookOnlyStrategy, helmTimeout
		install.ServerSideApply, install.ForceConflicts, install.TakeOwnership = true, true, true
		if _, err := install.RunWithContext(ctx, c.chart, content); err != nil {
			return fmt.Errorf("install the chart: %w", err)
		}
		return nil
	}
	upgrade := action.NewUpgrade(c.config)
	upgrade.Namespace, upgrade.MaxHistory, upgrade.ResetValues = settings.Namespace, history, true
	upgrade.WaitStrategy, upgrade.Timeout = kube.HookOnlyStrategy, helmTimeout
	upgrade.ServerSideApply, upgrade.ForceConflicts, upgrade.TakeOwnership = "true", true, true
	if _, err := upgrade.RunWithContext(ctx, release, c.chart, content); err != nil {
		return fmt.Errorf("upgrade the chart: %w", err)
	}
	return nil
}

// unlock forgets revisions that an interrupted run left half done. What they brought
// to the cluster is adopted by the next revision.
func (c *chart) unlock() error {
	history, err := c.config.Releases.History(release)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an installation: %w", err)
	}
	for _, item := range history {
		revision, ok := item.(*releasev1.Release)
		if !ok || !revision.Info.Status.IsPending() {
			continue
		}
		if _, err := c.config.Releases.Delete(release, revision.Version); err != nil {
			return fmt.Errorf("forget unfinished revision %d: %w", revision.Version, err)
		}
	}
	return nil
}

// exists says whether there is a release to upgrade.
func (c *chart) exists() (bool, error) {
	_, err := c.config.Releases.Last(release)
	if errors.Is(err, driver.ErrReleaseNotFound) || errors.Is(err, driver.ErrNoDeployedReleases) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an installation: %w", err)
	}
	return true, nil
}

// remove uninstalls the release, if there is one.
func (c *chart) remove() error {
	uninstall := action.NewUninstall(c.config)
	uninstall.IgnoreNotFound, uninstall.DeletionPropagation = true, "foreground"
	uninstall.WaitStrategy, uninstall.Timeout = kube.HookOnlyStrategy, helmTimeout
	if _, err := uninstall.Run(release); err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
		return fmt.Errorf("uninstall the chart: %w", err)
	}
	return nil
}

// bundle is the certificate authorities' bundle in base64, empty until the
// controller has made it.
func (i *installer) bundle(ctx context.Context) (string, error) {
	secret := &corev1.Secret{}
	err := i.client.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: caSecret}, secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("get Secret %s: %w", caSecret, err)
	}
	return base64.StdEncoding.EncodeToString(secret.Data["ca.crt"]), nil
}

// webhooksInstalled says whether the API server already calls us.
func (i *installer) webhooksInstalled(ctx context.Context) (bool, error) {
	err := i.client.Get(ctx, client.ObjectKey{Name: webhookName}, &admissionregistrationv1.ValidatingWebhookConfiguration{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get webhook configuration: %w", err)
	}
	return true, nil
}
