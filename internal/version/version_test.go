package version

import (
	"regexp"
	"testing"
)

func TestVersionIsAnImageTag(t *testing.T) {
	tag := regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	if v := Version(); !tag.MatchString(v) {
		t.Errorf("Version() = %q, which no registry accepts as a tag", v)
	}
}
