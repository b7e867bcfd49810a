#![no_main]

#[path = "../../tests/parsers/properties.rs"]
#[allow(dead_code, reason = "each target runs one of the properties")]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::safetensors_header(data));
