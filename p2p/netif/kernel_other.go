//go:build !linux

package netif

// kernelFacts returns nothing: the system does not say of what kind interfaces are.
func kernelFacts() map[int]fact { return nil }
