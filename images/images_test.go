package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMirrors(t *testing.T) {
	for name, c := range map[string]struct {
		targets                  string
		wantMirror, wantSecurity string
	}{
		"a Debian machine lends its mirrors": {
			targets:    "http://mirror.example/debian bookworm main\nhttp://mirror.example/debian bookworm-updates main\nhttp://mirror.example/sec bookworm-security main\n",
			wantMirror: "http://mirror.example/debian", wantSecurity: "http://mirror.example/sec",
		},
		"vendors' repositories are not mirrors of Debian": {
			targets:    "https://vendor.example/apt nodistro main\nhttp://mirror.example/debian trixie main\n",
			wantMirror: "http://mirror.example/debian", wantSecurity: defaultSecurityMirror,
		},
		"Ubuntu's mirrors have no Debian": {
			targets:    "http://archive.example/ubuntu noble main\nhttp://archive.example/ubuntu noble-security main\n",
			wantMirror: defaultMirror, wantSecurity: defaultSecurityMirror,
		},
		"backports alone are not the release": {
			targets:    "http://mirror.example/debian bookworm-backports main\n",
			wantMirror: defaultMirror, wantSecurity: defaultSecurityMirror,
		},
		"a machine without apt uses the defaults": {wantMirror: defaultMirror, wantSecurity: defaultSecurityMirror},
	} {
		t.Run(name, func(t *testing.T) {
			mirror, security := mirrors([]byte(c.targets))
			if mirror != c.wantMirror || security != c.wantSecurity {
				t.Errorf("mirrors = %s, %s; want %s, %s", mirror, security, c.wantMirror, c.wantSecurity)
			}
		})
	}
}

// testTree writes a tar file like mmdebstrap's and opens it.
func testTree(t *testing.T, headers ...tar.Header) tree {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, header := range headers {
		header.Size = 0
		content := []byte("content of " + header.Name)
		if header.Typeflag == tar.TypeReg {
			header.Size = int64(len(content))
		}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(name, buffer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	files, err := openTree(file)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestClosure(t *testing.T) {
	files := testTree(t,
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/dash", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/bin/sh", Linkname: "dash"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/a.bin"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/b.bin"},
		tar.Header{Typeflag: tar.TypeLink, Name: "./usr/share/c.rom", Linkname: "./usr/share/a.bin"},
	)
	for name, c := range map[string]struct {
		patterns []string
		want     []string
		wantErr  bool
	}{
		"links on the way to a file come with it": {[]string{"/bin/sh"}, []string{"/bin", "/usr/bin/dash", "/usr/bin/sh"}, false},
		"a pattern takes all that match":          {[]string{"/usr/share/*.bin"}, []string{"/usr/share/a.bin", "/usr/share/b.bin"}, false},
		"a hard link is a file":                   {[]string{"/usr/share/c.rom"}, []string{"/usr/share/c.rom"}, false},
		"a file that Debian moved is an error":    {[]string{"/usr/share/*.rom", "/usr/share/gone"}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := files.closure(c.patterns)
			if (err != nil) != c.wantErr {
				t.Fatalf("closure: %v", err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("closure (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLayersOfTheSameFilesAreTheSame(t *testing.T) {
	files := testTree(t,
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./lib", Linkname: "usr/lib"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/lib/x", Mode: 0o4755, Uid: 5},
	)
	fill := func(w *layerWriter) error { return w.tree(files, []string{"/usr/lib/x", "/lib"}) }
	first, err := Cache{Dir: t.TempDir()}.layer("k", fill)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Cache{Dir: t.TempDir()}.layer("k", fill)
	if err != nil {
		t.Fatal(err)
	}
	if first.Sum != second.Sum || first.Diff != second.Diff {
		t.Errorf("digests differ: %v and %v", first.Sum, second.Sum)
	}

	content, err := first.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	archive := tar.NewReader(content)
	var got []string
	for {
		header, err := archive.Next()
		if err != nil {
			break
		}
		if header.Mode&0o7000 != 0 || header.Uid != 0 || header.ModTime.Unix() != epoch {
			t.Errorf("%s: mode %o, owner %d, time %v", header.Name, header.Mode, header.Uid, header.ModTime)
		}
		got = append(got, header.Name)
	}
	if diff := cmp.Diff([]string{"lib", "usr/", "usr/lib/", "usr/lib/x"}, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestImagesHaveDistinctNamesAndUsers(t *testing.T) {
	seen := map[string]bool{}
	for _, image := range catalog {
		if seen[image.Name] || image.User == "" || len(image.Entrypoint) == 0 || len(image.Files)+len(image.Pick.Paths) == 0 {
			t.Errorf("image %+v is incomplete or listed twice", image)
		}
		seen[image.Name] = true
	}
	launcher := catalog[indexOf(t, "virt-launcher")]
	if launcher.User != qemuUser {
		t.Errorf("virt-launcher runs as %s; disks belong to %s", launcher.User, qemuUser)
	}
}

func indexOf(t *testing.T, name string) int {
	t.Helper()
	for i, image := range catalog {
		if image.Name == name {
			return i
		}
	}
	t.Fatalf("no image %s", name)
	return 0
}

func TestCpio(t *testing.T) {
	var buffer bytes.Buffer
	w := newCpio(&buffer)
	w.dir("/bin")
	w.file("/bin/x", 0o755, []byte("abc"))
	w.link("/init", "bin/x")
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if buffer.Len()%4 != 0 {
		t.Errorf("length %d is not a multiple of 4, as the kernel wants it", buffer.Len())
	}
	if !bytes.HasPrefix(buffer.Bytes(), []byte("070701")) || !bytes.Contains(buffer.Bytes(), []byte("bin/x\x00")) || bytes.Contains(buffer.Bytes(), []byte("/bin\x00")) {
		t.Errorf("unexpected archive %q", buffer.Bytes())
	}
}
