// Package compress knows the containers in which a NAR travels: it decodes the
// compressions that narinfos name, and wraps a raw NAR into the stored containers, xz
// and zstd files that hold the bytes uncompressed. It verifies nothing.
package compress
