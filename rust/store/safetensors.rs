//! The header of a safetensors file, read by a strict parser.
//!
//! ```text
//! u64 length | {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...} | data
//! ```
//! The grammar has a fixed depth, so the parser does not recurse. The tensors must cover the data
//! without gap or overlap, as the format's own library demands.

use std::collections::BTreeMap;

use super::fault::{Fault, Result, grouped};

/// Longest header that is read, as in the format's own library.
pub const LIMIT: u64 = 100_000_000;

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// As in `F32`.
    pub dtype: String,
    /// Lengths of the axes.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Bits of an entry.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Length of the header from the first eight bytes of a file of `length` bytes.
///
/// # Errors
/// [`Fault::Format`].
pub fn span(first: &[u8], length: u64) -> Result<u64> {
    let Some(first) = first.first_chunk() else {
        return Err(refused("is shorter than its 8 bytes of length"));
    };
    let header = u64::from_le_bytes(*first);
    if header > LIMIT {
        let text = format!("header of {} bytes exceeds {}", grouped(header), grouped(LIMIT));
        return Err(refused(&text));
    }
    if header + 8 > length {
        let text = format!(
            "is truncated: {} bytes, its header alone needs {}",
            grouped(length),
            grouped(header + 8)
        );
        return Err(refused(&text));
    }
    Ok(header)
}

/// Reads a header; `length` is that of the whole file.
///
/// # Errors
/// [`Fault::Format`], a distinct text for each fault.
pub fn read(header: &[u8], length: u64) -> Result<BTreeMap<String, Tensor>> {
    let tensors = Parser { text: header, at: 0 }.tensors()?;
    let start = header.len() as u64 + 8;
    let mut found = BTreeMap::new();
    let mut spans: Vec<(u64, u64, &str)> = Vec::new();
    for (name, tensor) in &tensors {
        let (from, to) = tensor.span(name)?;
        spans.push((from, to, name));
        let (dtype, shape) = (tensor.dtype.clone(), tensor.shape.clone());
        found.insert(name.clone(), Tensor { dtype, shape, start: start + from, bytes: to - from });
    }
    spans.sort_unstable();
    let mut end = 0;
    for (from, to, name) in spans {
        if from < end {
            return Err(refused(&format!("tensor {name:?} overlaps the one before it")));
        }
        if from > end {
            return Err(refused(&format!(
                "there is a gap of {} bytes before tensor {name:?}",
                from - end
            )));
        }
        end = to;
    }
    let data = length.saturating_sub(start);
    if end > data {
        let text = format!(
            "is truncated: {} bytes of data, its header promises {}",
            grouped(data),
            grouped(end)
        );
        return Err(refused(&text));
    }
    if end < data {
        return Err(refused(&format!("has {} bytes after its last tensor", grouped(data - end))));
    }
    Ok(found)
}

fn refused(text: &str) -> Fault {
    Fault::Format(format!("safetensors file {text}"))
}

#[derive(Debug, Default)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    offsets: Vec<u64>,
}

impl Entry {
    fn span(&self, name: &str) -> Result<(u64, u64)> {
        let [from, to] = self.offsets[..] else {
            return Err(refused(&format!("tensor {name:?} needs two data_offsets")));
        };
        let Some(bits) = bits(&self.dtype) else {
            return Err(refused(&format!(
                "tensor {name:?} has the unknown dtype {:?}",
                self.dtype
            )));
        };
        let total = self.shape.iter().try_fold(bits, |product, &axis| product.checked_mul(axis));
        let Some(total) = total else {
            return Err(refused(&format!("tensor {name:?}: shape {:?} overflows", self.shape)));
        };
        if total % 8 != 0 {
            return Err(refused(&format!("tensor {name:?} ends inside a byte ({total} bits)")));
        }
        if to.checked_sub(from) != Some(total / 8) {
            let text = format!(
                "tensor {name:?}: data_offsets [{from}, {to}] do not hold {} bytes",
                total / 8
            );
            return Err(refused(&text));
        }
        Ok((from, to))
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn tensors(&mut self) -> Result<Vec<(String, Entry)>> {
        let mut found: Vec<(String, Entry)> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        self.object(|parser, name| {
            if !names.insert(name.clone()) {
                return Err(refused(&format!("has the name {name:?} twice")));
            }
            if name == "__metadata__" {
                return parser.object(|parser, _| parser.string().map(drop));
            }
            let entry = parser.entry(&name)?;
            found.push((name, entry));
            Ok(())
        })?;
        self.blanks();
        if self.at < self.text.len() {
            return Err(self.unexpected());
        }
        Ok(found)
    }

    fn entry(&mut self, name: &str) -> Result<Entry> {
        let mut entry = Entry::default();
        let mut seen = [false; 3];
        self.object(|parser, key| {
            let place = match key.as_str() {
                "dtype" => {
                    entry.dtype = parser.string()?;
                    0
                }
                "shape" => {
                    entry.shape = parser.integers()?;
                    1
                }
                "data_offsets" => {
                    entry.offsets = parser.integers()?;
                    2
                }
                _ => return Err(refused(&format!("tensor {name:?} has the key {key:?}"))),
            };
            if std::mem::replace(&mut seen[place], true) {
                return Err(refused(&format!("tensor {name:?} has the key {key:?} twice")));
            }
            Ok(())
        })?;
        if seen == [true; 3] {
            Ok(entry)
        } else {
            Err(refused(&format!("tensor {name:?} lacks dtype, shape or data_offsets")))
        }
    }

    fn object(&mut self, mut member: impl FnMut(&mut Self, String) -> Result<()>) -> Result<()> {
        self.expect(b'{')?;
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            member(self, key)?;
            if self.eat(b'}') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn integers(&mut self) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        self.expect(b'[')?;
        if self.eat(b']') {
            return Ok(found);
        }
        loop {
            if found.len() == 32 {
                return Err(refused("has a tensor of more than 32 axes"));
            }
            found.push(self.integer()?);
            if self.eat(b']') {
                return Ok(found);
            }
            self.expect(b',')?;
        }
    }

    fn integer(&mut self) -> Result<u64> {
        self.blanks();
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = String::from_utf8_lossy(&self.text[self.at..self.at + digits]).into_owned();
        let value = text.parse().map_err(|_| self.unexpected())?;
        self.at += digits;
        Ok(value)
    }

    fn string(&mut self) -> Result<String> {
        self.expect(b'"')?;
        let mut bytes = Vec::new();
        loop {
            match self.next()? {
                b'"' => break,
                b'\\' => self.escape(&mut bytes)?,
                byte if byte < 0x20 => return Err(self.unexpected()),
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| refused("header is not UTF-8"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let letter = match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return Err(self.unexpected()),
        };
        bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// `\u00e9`, or a pair of surrogates.
    fn unicode(&mut self) -> Result<char> {
        let high = self.hex()?;
        if let Some(letter) = char::from_u32(high) {
            return Ok(letter);
        }
        if self.next()? != b'\\' || self.next()? != b'u' {
            return Err(self.unexpected());
        }
        let low = self.hex()?;
        let pair = char::decode_utf16([high as u16, low as u16]).next();
        pair.and_then(std::result::Result::ok).ok_or_else(|| self.unexpected())
    }

    fn hex(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        let text = std::str::from_utf8(digits).unwrap_or_default();
        let plain = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u32::from_str_radix(text, 16).ok().filter(|_| plain);
        self.at += 4;
        value.ok_or_else(|| self.unexpected())
    }

    fn next(&mut self) -> Result<u8> {
        let byte = self.text.get(self.at).copied().ok_or_else(|| self.unexpected())?;
        self.at += 1;
        Ok(byte)
    }

    fn blanks(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.blanks();
        let there = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.eat(byte) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn unexpected(&self) -> Fault {
        refused(&format!("header is not the JSON of tensors at byte {}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, data: u64) -> Result<BTreeMap<String, Tensor>> {
        read(text.as_bytes(), text.len() as u64 + 8 + data)
    }

    fn tensor(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#""{name}": {{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    }

    #[test]
    fn a_sound_header_gives_its_tensors() {
        let text = format!(
            r#"{{"__metadata__":{{"format":"pt"}}, {}, {}}}   "#,
            tensor("a\\u00e9", "F32", "[2,3]", "[0,24]"),
            tensor("b", "BF16", "[]", "[24,26]"),
        );
        let found = parse(&text, 26).unwrap();
        assert_eq!(found["aé"].shape, [2, 3]);
        assert_eq!(found["b"].start, text.len() as u64 + 8 + 24);
    }

    #[test]
    fn each_fault_of_a_header_has_its_own_text() {
        let one = |dtype, shape, offsets| format!("{{{}}}", tensor("a", dtype, shape, offsets));
        let pair = |first: &str, second: &str| {
            format!("{{{},{}}}", tensor("a", "U8", "[4]", first), tensor("b", "U8", "[4]", second))
        };
        let cases = [
            (one("F32", "[2]", "[0,8]"), 4, "truncated"),
            (one("F32", "[2]", "[0,8]"), 9, "after its last tensor"),
            (one("F32", "[2]", "[0,4]"), 4, "do not hold 8 bytes"),
            (one("F32", "[2]", "[8,0]"), 8, "do not hold 8 bytes"),
            (one("F32", "[2]", "[0]"), 8, "needs two data_offsets"),
            (one("F4", "[3]", "[0,1]"), 1, "ends inside a byte"),
            (one("X7", "[3]", "[0,1]"), 1, "unknown dtype"),
            (one("F32", "[4294967296,4294967296]", "[0,1]"), 1, "overflows"),
            (pair("[0,4]", "[2,6]"), 6, "overlaps"),
            (pair("[0,4]", "[5,9]"), 9, "gap of 1 bytes"),
            (pair("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), 8, "twice"),
            ("[".repeat(100_000), 0, "not the JSON"),
            (r#"{"a":{"dtype":"F32"}}"#.into(), 0, "lacks"),
            (r#"{"a":{"extra":1}}"#.into(), 0, "has the key"),
        ];
        for (text, data, want) in cases {
            let got = parse(&text, data).unwrap_err().to_string();
            assert!(got.contains(want), "{got} lacks {want}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        assert!(span(&u64::MAX.to_le_bytes(), 12).unwrap_err().to_string().contains("exceeds"));
        assert!(span(&100u64.to_le_bytes(), 12).unwrap_err().to_string().contains("truncated"));
        assert!(span(&[1, 2], 2).is_err());
    }

    #[test]
    fn no_prefix_of_a_header_is_accepted_or_panics() {
        let whole = format!("{{{}}}", tensor("a\\n\\ud83d\\ude00", "F32", "[2]", "[0,8]"));
        assert!(parse(&whole, 8).is_ok());
        for length in 0..whole.len() {
            assert!(parse(&whole[..length], 8).is_err(), "{length}");
        }
    }
}
