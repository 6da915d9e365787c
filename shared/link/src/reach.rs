//! Why nothing comes back from a hub, as far as that can be seen from here: does its name resolve, does its host
//! answer on TCP? Asked only once UDP has been silent for [`crate::ANSWER_TIMEOUT`]; nothing is sent on these
//! connections.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::resolve::resolve;

/// Both questions together may take this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where hubs have their web server as a rule.
const HTTPS: u16 = 443;

/// What was seen of a hub that does not answer on UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Its name leads nowhere: why.
    NoName(String),
    /// Its host answers on TCP at this address, be it with a refusal.
    Tcp { at: SocketAddr, opens: bool },
    /// Its host answers on TCP neither at the hub's port nor at 443.
    Nothing { host: IpAddr },
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName(why) => write!(f, "its name does not resolve: {why}"),
            Self::Tcp { at, opens } => {
                let how = if *opens {
                    "answers"
                } else {
                    "refuses, so it is there,"
                };
                write!(
                    f,
                    "its name resolves and its host {how} on TCP at {at}: so it is UDP that is blocked on the way, or no hub with this key listens on that port"
                )
            }
            Self::Nothing { host } => write!(
                f,
                "its name resolves, but {host} does not answer on TCP either"
            ),
        }
    }
}

/// Looks for a hub at `HOST:PORT`.
pub(crate) async fn look(address: &str) -> Reach {
    let resolved = tokio::time::timeout(PATIENCE / 2, resolve(address, None)).await;
    let at = match resolved {
        Ok(Ok(at)) => at,
        Ok(Err(error)) => return Reach::NoName(error.to_string()),
        Err(_) => return Reach::NoName("no answer from the name server".to_owned()),
    };
    let secure = SocketAddr::new(at.ip(), HTTPS);
    let (own, https) = tokio::join!(connect(at), connect(secure));
    // A port that opens says more than one that refuses.
    let seen = [(at, own), (secure, https)];
    let answered = |wanted: bool| {
        seen.iter()
            .find(|(_, opens)| *opens == Some(wanted))
            .map(|(at, opens)| (*at, opens.is_some_and(|opens| opens)))
    };
    match answered(true).or_else(|| answered(false)) {
        Some((at, opens)) => Reach::Tcp { at, opens },
        None => Reach::Nothing { host: at.ip() },
    }
}

/// Whether the port opens; none: nobody says.
async fn connect(at: SocketAddr) -> Option<bool> {
    match tokio::time::timeout(PATIENCE / 2, TcpStream::connect(at)).await {
        Ok(Ok(_)) => Some(true),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Some(false),
        Ok(Err(_)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_an_open_port_from_a_closed_one_and_a_name_from_none() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let open = look(&at.to_string()).await;
            assert_eq!(open, Reach::Tcp { at, opens: true });
            let text = open.to_string();
            assert!(
                text.contains("it is UDP that is blocked") && text.contains(&at.to_string()),
                "{text}"
            );
            drop(listener);
            // Somebody may listen on 443 here.
            let closed = look(&at.to_string()).await;
            assert!(
                matches!(closed, Reach::Tcp { at: seen, opens } if opens == (seen.port() == HTTPS)),
                "{closed:?}"
            );
            let nameless = look("no-such-host.invalid:9710").await;
            assert!(matches!(nameless, Reach::NoName(_)), "{nameless:?}");
        });
    }
}
