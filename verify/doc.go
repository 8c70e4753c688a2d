// Package verify checks what sources claim. Narinfo text becomes an *Info only if a trusted key
// signed it for the path that was asked for, and only signed facts leave an *Info. The bytes of a
// NAR are released only as far as they can still be withheld, the last of them when size and
// hash match. What is wrong is an error of one type, *InvalidError, so that it is never confused
// with absence or trouble. It does no I/O and logs nothing. Its Go API is not meant for other
// programs and may change.
package verify
