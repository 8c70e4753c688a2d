package config

import (
	"os"
	"path/filepath"
	"testing"
)

// The secret of a closed site that systemd hands over is used without any setting.
func TestCredential(t *testing.T) {
	dir := t.TempDir()
	env := Env{Getenv: func(k string) string {
		return map[string]string{"CREDENTIALS_DIRECTORY": dir, "HOME": "/home/u"}[k]
	}, Root: func() bool { return false }, DefaultFile: filepath.Join(dir, "none")}
	if c, err := load(t, env); err != nil || c.SwarmKeyFile != "" {
		t.Errorf("without a file: %q %v", c.SwarmKeyFile, err)
	}
	file := filepath.Join(dir, "nixp2p.swarm-key")
	if err := os.WriteFile(file, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	if c, err := load(t, env); err != nil || c.SwarmKeyFile != file {
		t.Errorf("with a file: %q %v", c.SwarmKeyFile, err)
	}
	if c, err := load(t, env, "--swarm-key-file", "/x"); err != nil || c.SwarmKeyFile != "/x" {
		t.Errorf("with a flag: %q %v", c.SwarmKeyFile, err)
	}
}
