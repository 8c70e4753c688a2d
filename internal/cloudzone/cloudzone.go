// Package cloudzone asks the metadata service of a cloud in which zone this machine runs.
package cloudzone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"
)

// Metadata is where all of these clouds answer their machines, and nobody else does.
const Metadata = "http://169.254.169.254"

const (
	// askTime bounds one question: the service answers in milliseconds, and nobody does
	// elsewhere.
	askTime   = 2 * time.Second
	maxAnswer = 16 << 10
)

// cloud is how one provider is asked.
type cloud struct {
	name   string
	path   string
	header [2]string
	token  bool // AWS wants one, which a plain GET does not get
	parse  func(body string) string
}

// clouds in the order in which they are asked. OpenStack and others answer as EC2 did at first.
var clouds = []cloud{
	{name: "AWS", path: "/latest/meta-data/placement/availability-zone-id", token: true, parse: plain},
	{name: "Google Cloud", path: "/computeMetadata/v1/instance/zone", header: [2]string{"Metadata-Flavor", "Google"}, parse: path.Base},
	{name: "Azure", path: "/metadata/instance/compute?api-version=2021-02-01", header: [2]string{"Metadata", "true"}, parse: azure},
	{name: "Hetzner", path: "/hetzner/v1/metadata/availability-zone", parse: plain},
	{name: "EC2 API", path: "/latest/meta-data/placement/availability-zone", parse: plain},
}

func plain(body string) string { return body }

// azure returns region and zone; a region without zones is one.
func azure(body string) string {
	var v struct{ Location, Zone string }
	if json.Unmarshal([]byte(body), &v) != nil || v.Location == "" {
		return ""
	}
	if v.Zone == "" {
		return v.Location
	}
	return v.Location + "-" + v.Zone
}

// Find returns the zone of this machine as the service at base, such as Metadata, says.
func Find(ctx context.Context, base string) (string, error) {
	client := &http.Client{
		// It is on the link: no proxy knows it, and it does not redirect.
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var errs []error
	for _, c := range clouds {
		zone, err := c.ask(ctx, client, base)
		if err == nil && zone != "" {
			return zone, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		if ctx.Err() != nil || errors.Is(err, errNobody) {
			break // nobody answers there at all
		}
	}
	return "", fmt.Errorf("zone: no metadata service of a cloud says it: %w", errors.Join(errs...))
}

var errNobody = errors.New("no answer")

// ask returns what one cloud's service says.
func (c cloud) ask(ctx context.Context, client *http.Client, base string) (string, error) {
	header := http.Header{}
	if c.header[0] != "" {
		header.Set(c.header[0], c.header[1])
	}
	if c.token {
		token, err := get(ctx, client, http.MethodPut, base+"/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
		if err != nil {
			return "", err
		}
		header.Set("X-Aws-Ec2-Metadata-Token", token)
	}
	body, err := get(ctx, client, http.MethodGet, base+c.path, header)
	if err != nil {
		return "", err
	}
	zone := c.parse(body)
	if zone == "" {
		return "", errors.New("no zone in the answer")
	}
	return zone, nil
}

func get(ctx context.Context, client *http.Client, method, url string, header http.Header) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNobody, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", errNobody, err)
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return strings.TrimSpace(string(body)), nil
}
