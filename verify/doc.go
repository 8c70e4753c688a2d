// Package verify turns claims into proof: narinfo text becomes an *Info only when a
// trusted key signed it for the path that was asked for, and the bytes of a NAR are
// released only as far as they can still be taken back, the last of them when size
// and hash match. Lies are errors of one type, *InvalidError, so that they are never taken
// for absence or for trouble. It opens nothing and logs nothing; its Go API is not
// meant for other programs and may change.
package verify
