package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// contextName is the name of a cluster's context, cluster and user in a kubeconfig.
func contextName(cluster string) string { return "orlop-" + cluster }

// adminConfig is the user's access, self-contained.
func (c *Cluster) adminConfig() (*clientcmdapi.Config, error) {
	pki, err := c.openPKI()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(c.dir, "pki", "admin")
	if err := pki.cluster.issue(base, subject{name: "orlop-admin", groups: []string{"system:masters"}, client: true}, c.now()); err != nil {
		return nil, err
	}
	certificate, err := os.ReadFile(base + ".crt")
	if err != nil {
		return nil, fmt.Errorf("read certificate of the administrator: %w", err)
	}
	key, err := os.ReadFile(base + ".key")
	if err != nil {
		return nil, fmt.Errorf("read key of the administrator: %w", err)
	}
	name := contextName(c.name)
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.server(), CertificateAuthorityData: pki.cluster.pem}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return config, nil
}

// Kubeconfig returns the user's access as a file of its own.
func (c *Cluster) Kubeconfig() ([]byte, error) {
	if c.state == nil {
		return nil, c.missing()
	}
	config, err := c.adminConfig()
	if err != nil {
		return nil, err
	}
	return clientcmd.Write(*config)
}

// restConfig is the administrator's connection. Only up uses it, which watches
// progress closely, hence no limit on requests.
func (c *Cluster) restConfig() (*rest.Config, error) {
	config, err := c.adminConfig()
	if err != nil {
		return nil, err
	}
	connection, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read own kubeconfig: %w", err)
	}
	connection.QPS = -1
	return connection, nil
}

// kubeconfigOptions says which file is changed: the given one, else the user's by the
// usual rules (KUBECONFIG, then the home directory).
func kubeconfigOptions(file string) *clientcmd.PathOptions {
	options := clientcmd.NewDefaultPathOptions()
	options.LoadingRules.Warner = func(error) {}
	if file != "" {
		options.LoadingRules.ExplicitPath = file
	}
	return options
}

// mergeKubeconfig adds the cluster's context to a kubeconfig and makes it current.
func (c *Cluster) mergeKubeconfig(file string) (string, error) {
	config, err := c.adminConfig()
	if err != nil {
		return "", err
	}
	options := kubeconfigOptions(file)
	path := options.GetDefaultFilename()
	if options.IsExplicitFile() {
		path = options.GetExplicitFile()
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("find kubeconfig: %w", err)
	}
	all, err := options.GetStartingConfig()
	if err != nil {
		return "", fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	name := contextName(c.name)
	all.Clusters[name], all.AuthInfos[name] = config.Clusters[name], config.AuthInfos[name]
	if old := all.Contexts[name]; old != nil {
		config.Contexts[name].Namespace = old.Namespace // the user's choice
	}
	all.Contexts[name], all.CurrentContext = config.Contexts[name], name
	// Recorded first: down must find every file that could have been changed.
	if !slices.Contains(c.state.Kubeconfigs, path) {
		c.state.Kubeconfigs = append(c.state.Kubeconfigs, path)
		if err := c.state.write(c.dir); err != nil {
			return "", err
		}
	}
	if err := clientcmd.ModifyConfig(options, *all, false); err != nil {
		return "", fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return path, nil
}

// forgetKubeconfigs removes the cluster's context from every file that got it.
func forgetKubeconfigs(cluster string, files []string) error {
	var errs []error
	for _, file := range files {
		if err := forgetKubeconfig(cluster, file); err != nil {
			errs = append(errs, fmt.Errorf("remove context from %s: %w", file, err))
		}
	}
	return errors.Join(errs...)
}

func forgetKubeconfig(cluster, file string) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		return err
	}
	name := contextName(cluster)
	delete(config.Clusters, name)
	delete(config.AuthInfos, name)
	delete(config.Contexts, name)
	if config.CurrentContext == name {
		config.CurrentContext = ""
	}
	if len(config.Clusters)+len(config.AuthInfos)+len(config.Contexts) == 0 {
		return os.Remove(file)
	}
	return clientcmd.WriteToFile(*config, file)
}
