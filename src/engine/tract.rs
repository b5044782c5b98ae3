//! tract
