#![no_std]
//! Shared
