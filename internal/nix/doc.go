// Package nix holds the words of the Nix binary-cache protocol: hashes and their
// encodings, store paths, signatures, narinfo text and its fingerprint, the
// nix-cache-info text, NAR framing, and the URL paths under which this project
// offers NARs. Everything here is parsed once, at the edge, into small value types.
// It does no I/O and verifies nothing: that is done by package verify.
package nix
