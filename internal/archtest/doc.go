// Package archtest holds the rules of the house as tests: which package may import which,
// who may use which dependency, how large things may grow, and that ARCHITECTURE.md and
// README.md say what the code says. It parses the sources in this process, because the
// answer of a subprocess would come from the test cache after a file has changed. It is
// not imported by anything.
package archtest
