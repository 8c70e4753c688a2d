package nix

import "context"

// viaKey is the key of the Via chain in a context.
type viaKey struct{}

// ContextWithVia returns a context that carries the Via header of the request that is being
// worked on, so that what is asked upstream on its behalf names all nodes of the chain. Two
// daemons that have each other as upstream recognise themselves by it.
func ContextWithVia(ctx context.Context, via string) context.Context {
	return context.WithValue(ctx, viaKey{}, via)
}

// Via returns the Via header of the request that is being worked on, "" if it had none.
func Via(ctx context.Context) string {
	via, _ := ctx.Value(viaKey{}).(string)
	return via
}
