//! HTTP as a viewer speaks it.

use std::{io::Read, time::Duration};

use anyhow::{Context, Result};
use m3u8_rs::MediaPlaylist;

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GET of a URL.
pub fn get(url: &str) -> Result<Response> {
    get_with(url, &[])
}

/// GET with request headers.
pub fn get_with(url: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into();
    let mut request = agent.get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.call().with_context(|| format!("GET {url}"))?;
    let headers = answer
        .headers()
        .iter()
        .map(|(n, v)| {
            (
                n.to_string(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect();
    let mut body = Vec::new();
    answer
        .body_mut()
        .as_reader()
        .read_to_end(&mut body)
        .with_context(|| format!("body of {url}"))?;
    Ok(Response {
        status: answer.status().as_u16(),
        headers,
        body,
    })
}

/// A media playlist, parsed by a parser that is not ours to the last byte.
pub fn playlist(url: &str) -> Result<MediaPlaylist> {
    let answer = get(url)?;
    anyhow::ensure!(
        answer.status == 200,
        "GET {url}: {} {}",
        answer.status,
        answer.text()
    );
    parse(url, &answer.body)
}

/// Parses a media playlist from `from` to its last byte.
pub(crate) fn parse(from: &str, text: &[u8]) -> Result<MediaPlaylist> {
    match m3u8_rs::parse_media_playlist(text) {
        Ok(([], playlist)) => Ok(playlist),
        Ok((rest, _)) => anyhow::bail!("{from}: unparsed rest {:?}", String::from_utf8_lossy(rest)),
        Err(error) => anyhow::bail!("{from}: {error}: {}", String::from_utf8_lossy(text)),
    }
}
