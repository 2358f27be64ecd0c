package csi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
)

// sanityEnv tells the re-executed test binary which access type to test: the
// suite can run only once in a process.
const sanityEnv = "ORLOP_CSI_SANITY"

// TestSanity runs the public conformance suite of CSI for file systems and blocks.
func TestSanity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	for _, access := range []string{"mount", "block"} {
		t.Run(access, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSanitySuite$", "-test.v")
			cmd.Env = append(os.Environ(), sanityEnv+"="+access)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Log(lastLines(string(out), 8))
		})
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// TestSanitySuite is the body of TestSanity, in a process of its own.
func TestSanitySuite(t *testing.T) {
	access := os.Getenv(sanityEnv)
	if access == "" {
		t.Skip("started by TestSanity")
	}
	d := startDriver(t)
	c := sanity.NewTestConfig()
	c.Address = d.socket
	c.TargetPath = filepath.Join(d.dir, "target")
	c.StagingPath = filepath.Join(d.dir, "staging")
	c.TestVolumeAccessType = access
	c.TestVolumeSize = 1 << 30
	c.TestVolumeExpandSize = 2 << 30
	c.CreateTargetDir, c.CreateStagingDir = makeDir, makeDir
	c.CheckPath = checkPath
	sanity.Test(t, c)
}

func makeDir(path string) (string, error) { return path, os.MkdirAll(path, 0o755) }

func checkPath(path string) (sanity.PathKind, error) {
	st, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return sanity.PathIsNotFound, nil
	case err != nil:
		return "", err
	case st.IsDir():
		return sanity.PathIsDir, nil
	case st.Mode().IsRegular():
		return sanity.PathIsFile, nil
	}
	return sanity.PathIsOther, nil
}
