package verify

// Reason says what was wrong. It is the value of a metric's label.
type Reason string

// The reasons.
const (
	ReasonCorrupt      Reason = "corrupt"       // a malformed narinfo
	ReasonWrongPath    Reason = "wrong_path"    // the narinfo of another path
	ReasonUnsigned     Reason = "unsigned"      // no signature by a trusted key
	ReasonBadSignature Reason = "bad_signature" // a signature under a trusted key's name that the key did not make
	ReasonWrongNar     Reason = "wrong_nar"     // another NAR than the one that was agreed on
	ReasonSize         Reason = "size"          // a NAR or file that goes on past its size
	ReasonHash         Reason = "hash"          // a NAR or file whose hash is wrong
	ReasonEncoding     Reason = "encoding"      // a file that is not what its compression says
)

// InvalidError says that a source said something wrong: neither that it has nothing (an error
// that wraps fs.ErrNotExist) nor that it could not answer (any other error).
type InvalidError struct {
	Reason Reason
	Err    error
}

func (e *InvalidError) Error() string { return "invalid: " + string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns what was wrong in detail.
func (e *InvalidError) Unwrap() error { return e.Err }
