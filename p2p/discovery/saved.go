package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nixp2p/nixp2p/internal/disk"
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
	if err := disk.Replace(path, append(text, '\n')); err != nil {
		return fmt.Errorf("discovery: saved peers: %w", err)
	}
	return nil
}
