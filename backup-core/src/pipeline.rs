//! Plain bytes to stored bytes, and back.
