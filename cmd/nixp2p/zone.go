package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/nixp2p/nixp2p/internal/cloudzone"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// configuredZone returns the zone that the configuration names, "" if it names none.
func configuredZone(cfg *config.Config) string {
	if cfg.Zone == config.ZoneAuto {
		return ""
	}
	return cfg.Zone
}

// endpointVariable names another metadata service, as it does for the tools of AWS.
const endpointVariable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

// A metadata service that does not answer is asked again: at boot, the network may come later.
const (
	zoneFirst = 5 * time.Second
	zoneMost  = 10 * time.Minute
)

// findZone asks the cloud for this machine's zone, if that is wanted. Until it is known, all
// peers are alike.
func (n *node) findZone(ctx context.Context, log *slog.Logger) error {
	if n.cfg.Zone != config.ZoneAuto {
		return nil
	}
	base := cmp.Or(os.Getenv(endpointVariable), cloudzone.Metadata)
	for wait := zoneFirst; ; wait = min(2*wait, zoneMost) {
		zone, err := cloudzone.Find(ctx, base)
		if err == nil {
			if zone, err = wire.ParseZone(zone); err == nil {
				log.Info("this machine is in a zone", "zone", zone)
				n.peers.SetZone(zone)
				return nil
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the zone of this machine is not known, all peers are alike", "err", err, "again_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
