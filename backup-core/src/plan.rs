//! What will happen, validated.
