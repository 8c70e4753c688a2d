package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// maxSaved is how many addresses are kept over a restart.
const maxSaved = 64

// LoadSaved reads the addresses that Save wrote; a file that is not there has none.
func LoadSaved(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("discovery: saved peers: %w", err)
	}
	addrs, err := ParseList(text)
	if err != nil {
		return nil, fmt.Errorf("discovery: saved peers: %w", err)
	}
	return addrs[:min(len(addrs), maxSaved)], nil
}

// Save replaces the file by these addresses, as many as are kept.
func Save(path string, addrs []string) error {
	text, err := json.MarshalIndent(addrs[:min(len(addrs), maxSaved)], "", " ")
	if err != nil {
		return fmt.Errorf("discovery: saved peers: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("discovery: saved peers: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("discovery: saved peers: %w", err)
	}
	return nil
}
