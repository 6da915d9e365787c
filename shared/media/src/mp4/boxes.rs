//! Boxes inside bytes at hand, and the headers of boxes in the file (ISO/IEC 14496-12, 4.2).

/// A box type.
pub(super) type FourCc = [u8; 4];

/// Longest header: size, type, 64-bit size.
pub(super) const MAX_HEADER_BYTES: usize = 16;

/// A box's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FourCc,
    pub(super) header_bytes: usize,
    /// Header included; None where the box goes on to the end of what holds it.
    pub(super) size: Option<u64>,
}

impl Header {
    /// Reads the header that `bytes` begin with; None if there is none with sense.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk()?;
        let (&kind, rest) = rest.split_first_chunk()?;
        let (size, header_bytes) = match u32::from_be_bytes(*size) {
            0 => (None, 8),
            1 => (Some(u64::from_be_bytes(*rest.first_chunk()?)), 16),
            size => (Some(size.into()), 8),
        };
        let sane = size.is_none_or(|size| size >= header_bytes as u64);
        sane.then_some(Self {
            kind,
            header_bytes,
            size,
        })
    }
}

/// The boxes that follow each other in `bytes`, each with its header; ends at the first that doesn't fit.
pub(super) fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::parse(bytes)?;
        let size = match header.size {
            Some(size) => usize::try_from(size).ok()?,
            None => bytes.len(),
        };
        let (whole, rest) = bytes.split_at_checked(size)?;
        bytes = rest;
        Some((header, whole))
    })
}

/// What a box holds, behind its header.
pub(super) fn body<'a>(&(header, whole): &(Header, &'a [u8])) -> &'a [u8] {
    whole.get(header.header_bytes..).unwrap_or_default()
}

/// The first box of a kind in `bytes`.
pub(super) fn find<'a>(bytes: &'a [u8], kind: &FourCc) -> Option<(Header, &'a [u8])> {
    boxes(bytes).find(|(header, _)| header.kind == *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = |kind: &FourCc, header_bytes, size| {
            Some(Header {
                kind: *kind,
                header_bytes,
                size,
            })
        };
        assert_eq!(
            Header::parse(b"\0\0\0\x09mdat1"),
            header(b"mdat", 8, Some(9))
        );
        assert_eq!(Header::parse(b"\0\0\0\0mdat"), header(b"mdat", 8, None));
        assert_eq!(
            Header::parse(b"\0\0\0\x01mdat\0\0\0\x02\0\0\0\0"),
            header(b"mdat", 16, Some(2 << 32))
        );
        for bad in [
            &b"\0\0\0\x07mdat"[..],
            b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x0f",
            b"\0\0\0\x01mdat",
            b"\0\0",
        ] {
            assert_eq!(Header::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn boxes_end_where_they_do_not_fit() {
        let bytes = b"\0\0\0\x09aaaa1\0\0\0\x08bbbb\0\0\0\x0acccc";
        let kinds: Vec<_> = boxes(bytes).map(|(header, _)| header.kind).collect();
        assert_eq!(kinds, [*b"aaaa", *b"bbbb"]);
        assert_eq!(find(bytes, b"aaaa").as_ref().map(body), Some(&b"1"[..]));
    }
}
