//! Skiff.
