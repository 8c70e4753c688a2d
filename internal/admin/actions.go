package admin

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// maxPosted bounds the body of a request.
const maxPosted = 64 << 10

// PrefetchRequest is the body of POST /api/v1/prefetch.
type PrefetchRequest struct {
	StoreHash string `json:"store_hash"`
	DryRun    bool   `json:"dry_run"`
}

// Prefetched is the answer: how the path stands.
type Prefetched struct {
	StorePath  string   `json:"store_path"`
	References []string `json:"references"` // store hashes, itself left out
	NarSize    int64    `json:"nar_size"`
	Size       int64    `json:"size"`              // bytes of the form in which it is fetched, 0 when unknown
	AtHand     string   `json:"at_hand,omitempty"` // the source on this machine that had it before
}

// GCRequest is the body of POST /api/v1/gc.
type GCRequest struct {
	MaxBytes int64 `json:"max_bytes"` // negative: only list
	DryRun   bool  `json:"dry_run"`
}

// FollowRequest is the body of POST /api/v1/follow.
type FollowRequest struct {
	DryRun bool `json:"dry_run"`
}

// FollowPlan is what a followed list needs.
type FollowPlan struct {
	List         string `json:"list"`
	From         string `json:"from"`  // where redirects led
	Paths        int    `json:"paths"` // with those that they refer to
	Bytes        int64  `json:"bytes"` // in the forms in which they are fetched
	Here         int    `json:"here_paths"`
	MissingPaths int    `json:"missing_paths"`
	MissingBytes int64  `json:"missing_bytes"`
	Absent       int    `json:"absent_paths"`  // that no source has
	Failed       int    `json:"unknown_paths"` // of which a source could not say
	RoomBytes    int64  `json:"room_bytes"`    // of the cache, for what is kept
}

func (h *Handler) follow(w http.ResponseWriter, r *http.Request) {
	var req FollowRequest
	if !h.decode(w, r, &req) {
		return
	}
	plans, err := h.cfg.Node.Follow(r.Context(), req.DryRun)
	if err != nil {
		h.json(w, http.StatusConflict, Refusal{err.Error()})
		return
	}
	h.json(w, http.StatusOK, list(plans))
}

func (h *Handler) prefetch(w http.ResponseWriter, r *http.Request) {
	var req PrefetchRequest
	if !h.decode(w, r, &req) {
		return
	}
	hash, err := nix.ParseStoreHash(req.StoreHash)
	if err != nil {
		h.json(w, http.StatusBadRequest, Refusal{"not a store hash: " + err.Error()})
		return
	}
	p, err := h.cfg.Node.Prefetch(r.Context(), hash, req.DryRun)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		h.json(w, http.StatusNotFound, Refusal{"no source has it"})
	case err != nil:
		h.json(w, http.StatusBadGateway, Refusal{err.Error()})
	default:
		h.json(w, http.StatusOK, p)
	}
}

func (h *Handler) gc(w http.ResponseWriter, r *http.Request) {
	var req GCRequest
	if !h.decode(w, r, &req) {
		return
	}
	trim := h.cfg.Node.Trim
	if req.DryRun {
		trim = h.cfg.Node.TrimPlan
	}
	report, err := trim(req.MaxBytes)
	if err != nil {
		h.json(w, http.StatusConflict, Refusal{err.Error()})
		return
	}
	h.json(w, http.StatusOK, report)
}

// decode reads the posted JSON; it answers itself when that is wrong.
func (h *Handler) decode(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPosted))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		h.json(w, http.StatusBadRequest, Refusal{"request not understood: " + err.Error()})
		return false
	}
	return true
}
