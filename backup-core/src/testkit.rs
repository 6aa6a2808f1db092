//! Conformance suites, fakes and fault injection.
