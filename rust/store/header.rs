//! The header of a `.npy` file: written by us, and read from anybody by a strict parser.
//!
//! NumPy reads the header with `ast.literal_eval`, takes the last of two equal keys and accepts
//! trailing bytes. Here only the one dictionary that NumPy writes is a header: three keys, once
//! each, a plain dtype string, `True` or `False`, a tuple of integers.

use std::path::Path;

use super::fault::{Fault, Result, grouped};

/// Longest header that is read.
pub const LIMIT: u64 = 65_536;
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// NumPy's own alignment of the data.
const ALIGN: usize = 64;

/// What the header of a `.npy` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Npy {
    /// As in `<f4`.
    pub descr: String,
    /// Whether the first axis is the fastest.
    pub fortran: bool,
    /// Lengths of the axes.
    pub shape: Vec<u64>,
    /// Where the data start.
    pub start: u64,
    /// Bytes of the data.
    pub bytes: u64,
}

/// The header of a C-ordered float array.
pub fn write_npy(shape: &[usize], item: usize) -> Vec<u8> {
    let axes: Vec<String> = shape.iter().map(|axis| format!("{axis}, ")).collect();
    let tuple = axes.concat();
    let tuple = if shape.len() > 1 { tuple.trim_end_matches(", ") } else { tuple.trim_end() };
    let text = format!("{{'descr': '<f{item}', 'fortran_order': False, 'shape': ({tuple}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(ALIGN) - 10;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(format!("{text:width$}\n", width = length - 1).as_bytes());
    bytes
}

/// A file whose length is not the promised one.
pub fn wrong_length(path: &Path, length: u64, promised: u64) -> Fault {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let (length, promised) = (grouped(length), grouped(promised));
    Fault::Corrupt(format!("{name} is {length} bytes, its header promises {promised}"))
}

/// How many bytes of the file the header takes, from the first 12.
///
/// # Errors
/// [`Fault::Format`].
pub fn npy_span(first: &[u8]) -> Result<u64> {
    let (magic, rest) = first
        .split_first_chunk()
        .ok_or_else(|| Fault::Format("not a .npy file: it is shorter than its header".into()))?;
    if magic != MAGIC {
        return Err(Fault::Format("not a .npy file: its first bytes are not \\x93NUMPY".into()));
    }
    let (start, length) = match *rest {
        [1, 0, a, b, ..] => (10, u64::from(u16::from_le_bytes([a, b]))),
        [2 | 3, 0, a, b, c, d, ..] => (12, u64::from(u32::from_le_bytes([a, b, c, d]))),
        [1..=3, 0, ..] => return Err(Fault::Format(".npy header is cut off".into())),
        [major, minor, ..] => {
            return Err(Fault::Format(format!(".npy version {major}.{minor} is not known")));
        }
        _ => return Err(Fault::Format(".npy header is cut off".into())),
    };
    if length > LIMIT {
        let text = format!(".npy header of {} bytes exceeds 65,536", grouped(length));
        return Err(Fault::Format(text));
    }
    Ok(start + length)
}

/// Reads a header; `bytes` are the first [`npy_span`] bytes of the file.
///
/// # Errors
/// [`Fault::Format`]; [`Fault::UnsafeFile`] for objects, which are pickles.
pub fn read_npy(bytes: &[u8]) -> Result<Npy> {
    let span = npy_span(bytes)?;
    let start = if bytes[6] == 1 { 10 } else { 12 };
    let text = usize::try_from(span).ok().and_then(|span| bytes.get(start..span));
    let text = text.ok_or_else(|| Fault::Format(".npy header is cut off".into()))?;
    let mut parser = Parser { rest: text };
    let (descr, fortran, shape) = parser.dictionary()?;
    let item = item_size(&descr)?;
    let bytes = shape.iter().try_fold(item, |product, &axis| product.checked_mul(axis));
    let bytes = bytes.filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(|| {
        let axes: Vec<String> = shape.iter().map(u64::to_string).collect();
        Fault::Format(format!("shape ({}) overflows", axes.join(", ")))
    })?;
    Ok(Npy { descr, fortran, shape, start: span, bytes })
}

/// Bytes of an entry of a dtype string that holds plain numbers.
fn item_size(descr: &str) -> Result<u64> {
    let kind = descr.trim_start_matches(['<', '>', '|', '=']);
    if kind.starts_with('O') {
        let text = "object arrays need pickle, which can run code; refused";
        return Err(Fault::UnsafeFile(text.into()));
    }
    let (letter, digits) = kind.split_at(kind.len().min(1));
    let size = digits.parse().ok().filter(|size| (1..=16).contains(size));
    match (letter, size) {
        ("f" | "i" | "u" | "b" | "V" | "c", Some(size)) if descr.len() <= 4 => Ok(size),
        _ => Err(Fault::Format(format!(".npy dtype {descr:?} is not a plain number"))),
    }
}

/// Reads the one dictionary that can be a header, from left to right, without recursion.
struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn dictionary(&mut self) -> Result<(String, bool, Vec<u64>)> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.eat(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let twice = match key.as_str() {
                "descr" => descr.replace(self.descr()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => return Err(Fault::Format(format!(".npy header has the key {key:?}"))),
            };
            if twice {
                return Err(Fault::Format(format!(".npy header has the key {key:?} twice")));
            }
            if !self.eat(b',') && self.peek() != Some(b'}') {
                return Err(self.unexpected());
            }
        }
        self.blanks();
        match (descr, fortran, shape, self.rest) {
            (Some(descr), Some(fortran), Some(shape), []) => Ok((descr, fortran, shape)),
            (_, _, _, []) => {
                Err(Fault::Format(".npy header lacks one of descr, fortran_order, shape".into()))
            }
            _ => Err(Fault::Format(".npy header goes on after its dictionary".into())),
        }
    }

    fn blanks(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn peek(&mut self) -> Option<u8> {
        self.blanks();
        self.rest.first().copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if there {
            self.rest = &self.rest[1..];
        }
        there
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.eat(byte) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn unexpected(&self) -> Fault {
        let text: String = self.rest.iter().take(16).map(|&byte| char::from(byte)).collect();
        Fault::Format(format!(".npy header is not a plain dictionary at {text:?}"))
    }

    fn string(&mut self) -> Result<String> {
        let quote = self.peek().filter(|byte| matches!(byte, b'\'' | b'"'));
        let quote = quote.ok_or_else(|| self.unexpected())?;
        let text = &self.rest[1..];
        let end = text.iter().take(64).position(|&byte| byte == quote);
        let end = end.ok_or_else(|| self.unexpected())?;
        let plain = text[..end].iter().all(|byte| byte.is_ascii_graphic() && *byte != b'\\');
        if !plain {
            return Err(self.unexpected());
        }
        let string = String::from_utf8_lossy(&text[..end]).into_owned();
        self.rest = &text[end + 1..];
        Ok(string)
    }

    fn descr(&mut self) -> Result<String> {
        if self.peek() == Some(b'[') {
            let objects = self.rest.windows(3).any(|part| part.ends_with(b"O'") || part == b"|O'");
            return Err(if objects {
                let text = "object arrays need pickle, which can run code; refused";
                Fault::UnsafeFile(text.into())
            } else {
                Fault::Format(".npy holds records (a structured dtype); pass plain arrays".into())
            });
        }
        self.string()
    }

    fn boolean(&mut self) -> Result<bool> {
        self.blanks();
        for (text, value) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected())
    }

    fn tuple(&mut self) -> Result<Vec<u64>> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.eat(b')') {
            if shape.len() == 32 {
                return Err(Fault::Format(".npy shape has more than 32 axes".into()));
            }
            shape.push(self.integer()?);
            if !self.eat(b',') && self.peek() != Some(b')') {
                return Err(self.unexpected());
            }
        }
        Ok(shape)
    }

    fn integer(&mut self) -> Result<u64> {
        if self.peek() == Some(b'-') {
            return Err(Fault::Format(".npy shape has a negative axis".into()));
        }
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.unexpected());
        }
        let text = String::from_utf8_lossy(&self.rest[..count]).into_owned();
        self.rest = &self.rest[count..];
        let value = text.parse().ok().filter(|&value: &u64| value <= i64::MAX as u64);
        value.ok_or_else(|| Fault::Format(format!("shape axis {text} overflows")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(text: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn refused(text: &str) -> String {
        read_npy(&npy(text)).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shape in [&[][..], &[3], &[0, 5], &[2, 3, 4]] {
            let bytes = write_npy(shape, 4);
            assert_eq!(bytes.len() % ALIGN, 0);
            let found = read_npy(&bytes).unwrap();
            let want: Vec<u64> = shape.iter().map(|&axis| axis as u64).collect();
            assert_eq!((found.descr.as_str(), found.fortran, found.shape), ("<f4", false, want));
            assert_eq!(found.start as usize, bytes.len());
        }
    }

    #[test]
    fn only_the_dictionary_of_numpy_is_a_header() {
        let whole = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        assert!(read_npy(&npy(whole)).is_ok());
        for length in 0..whole.len() {
            assert!(read_npy(&npy(&whole[..length])).is_err(), "{length}");
        }
        let twice = "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}";
        assert!(refused(twice).contains("twice"));
        assert!(refused("{'descr': '<f4', 'x': 1}").contains("\"x\""));
        assert!(refused("[[[[[[[[").contains("not a plain dictionary"));
        assert!(refused(&format!("{whole} + 1")).contains("goes on"));
        let calls = "{'descr': __import__('os').system('x'), 'shape': (2,)}";
        assert!(refused(calls).contains("not a plain dictionary"));
    }

    #[test]
    fn sizes_that_overflow_or_are_negative_are_refused() {
        let shaped = |shape: &str| {
            refused(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"))
        };
        assert!(shaped("(8589934592, 8589934592)").contains("(8589934592, 8589934592) overflows"));
        assert!(shaped("(-1,)").contains("negative"));
        assert!(shaped("(99999999999999999999,)").contains("overflows"));
        assert!(shaped("(1.5,)").contains("not a plain"));
    }

    #[test]
    fn a_header_that_promises_gigabytes_is_refused_from_its_first_bytes() {
        let bytes = b"\x93NUMPY\x02\x00\xff\xff\xff\xff";
        let text = npy_span(bytes).unwrap_err().to_string();
        assert_eq!(text, ".npy header of 4,294,967,295 bytes exceeds 65,536");
    }

    #[test]
    fn objects_are_unsafe_files() {
        for descr in ["'|O'", "[('a', '|O')]"] {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2,)}}");
            assert!(matches!(read_npy(&npy(&text)), Err(Fault::UnsafeFile(_))));
        }
    }
}
