package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
)

// Pick is a part of a Debian root: the named files and, for programs, every library
// they are linked with. There is no shell and no package manager unless named, so
// what breaks out of a program finds nothing to use.
type Pick struct {
	Root  Root
	Paths []string // absolute paths or patterns of path.Match
}

// layer returns the picked files as a cached layer.
func (p Pick) layer(ctx context.Context, cache Cache) (*Layer, error) {
	archive, err := p.Root.archive(ctx, cache)
	if err != nil {
		return nil, err
	}
	return cache.layer(digestOf("pick", filepath.Base(archive), p.Paths), func(w *layerWriter) error {
		file, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer file.Close()
		files, err := openTree(file)
		if err != nil {
			return err
		}
		names, err := files.closure(p.Paths)
		if err != nil {
			return fmt.Errorf("pick from %s: %w", p.Root.Name, err)
		}
		return w.tree(files, names)
	})
}

// closure returns the sorted paths of everything the patterns need: matching files,
// symbolic links on the way to them, and libraries, over and over.
func (t tree) closure(patterns []string) ([]string, error) {
	queue, err := t.match(patterns)
	if err != nil {
		return nil, err
	}
	picked := map[string]bool{}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		real, links := t.resolve(name)
		for _, link := range links {
			picked[link] = true
		}
		if picked[real] {
			continue
		}
		if _, ok := t[real]; !ok {
			return nil, fmt.Errorf("%s does not exist", name)
		}
		picked[real] = true
		needed, err := t.libraries(real)
		if err != nil {
			return nil, err
		}
		queue = append(queue, needed...)
	}
	names := make([]string, 0, len(picked))
	for name := range picked {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, nil
}

// match expands patterns. A pattern that matches nothing is an error: Debian has
// moved the file, and the image would silently lack it.
func (t tree) match(patterns []string) ([]string, error) {
	var found []string
	for _, pattern := range patterns {
		if real, _ := t.resolve(pattern); t.has(real) {
			found = append(found, pattern)
			continue
		}
		before := len(found)
		for name := range t {
			if ok, err := path.Match(pattern, name); err != nil {
				return nil, fmt.Errorf("match %s: %w", pattern, err)
			} else if ok {
				found = append(found, name)
			}
		}
		if len(found) == before {
			return nil, fmt.Errorf("nothing matches %s", pattern)
		}
	}
	return found, nil
}

func (t tree) has(name string) bool {
	_, ok := t[name]
	return ok
}
