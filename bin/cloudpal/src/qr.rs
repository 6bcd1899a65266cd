//! A QR code in the terminal, two modules to a character, with the quiet zone that scanners need.
//!
//! Invariant: dark modules are dark whatever the terminal's colours: on a terminal the code brings its own black and
//! white (entries 16 and 231 of the 256 colours, which themes leave alone).

use cloudpal_model::{Kind, Problem};
use qrcode::{Color, EcLevel, QrCode};

/// Modules of white around the code (ISO/IEC 18004 asks for four).
const QUIET_ZONE: usize = 4;
const BLACK_ON_WHITE: &str = "\u{1b}[38;5;16;48;5;231m";
const RESET: &str = "\u{1b}[0m";

/// `colours`: for a terminal. Without them the light modules are drawn, which reads well on a dark background.
pub fn draw(text: &str, colours: bool) -> Result<String, Problem> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|error| {
        let what = format!("the profile does not fit into a QR code: {error}");
        Problem::new(Kind::Internal, what, "use --no-qr and the file")
    })?;
    let inner = code.width();
    let width = inner + 2 * QUIET_ZONE;
    let modules = code.to_colors();
    let dark = |x: usize, y: usize| {
        let inside =
            (QUIET_ZONE..QUIET_ZONE + inner).contains(&x) && (QUIET_ZONE..QUIET_ZONE + inner).contains(&y);
        inside && modules[(y - QUIET_ZONE) * inner + (x - QUIET_ZONE)] == Color::Dark
    };
    let mut drawing = String::new();
    for y in (0..width).step_by(2) {
        if colours {
            drawing.push_str(BLACK_ON_WHITE);
        }
        for x in 0..width {
            // What is inked: the dark modules in colour, the light ones without.
            let (upper, lower) = (dark(x, y) == colours, dark(x, y + 1) == colours);
            drawing.push(match (upper, lower) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        if colours {
            drawing.push_str(RESET);
        }
        drawing.push('\n');
    }
    Ok(drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n\
        Address = 10.77.1.1/32, fd12:3456:789a:1::101/128\nDNS = 10.77.0.1, ada.pal\nMTU = 1420\n\n[Peer]\n\
        PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
        PresharedKey = /UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=\n\
        AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 203.0.113.7:51820\nPersistentKeepalive = 25\n";

    /// Reads the drawing as a scanner would: `ink` is what a drawn half block looks like.
    fn scan(drawing: &str, ink: u8) -> String {
        const SCALE: usize = 4;
        let rows: Vec<Vec<char>> = drawing.lines().map(|line| line.chars().collect()).collect();
        let (width, height) = (rows[0].len() * SCALE, rows.len() * 2 * SCALE);
        let grey = |x: usize, y: usize| {
            let block = rows[y / (2 * SCALE)][x / SCALE];
            let inked = matches!((block, (y / SCALE) % 2), ('█', _) | ('▀', 0) | ('▄', 1));
            if inked { ink } else { 255 - ink }
        };
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, grey);
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1, "one code is seen");
        grids[0].decode().unwrap().1
    }

    #[test]
    fn a_scanner_reads_the_profile_back_with_and_without_colours() {
        let plain = draw(CONF, false).unwrap();
        assert_eq!(scan(&plain, 255), CONF);
        let coloured = draw(CONF, true).unwrap();
        assert!(coloured.lines().all(|line| line.starts_with(BLACK_ON_WHITE) && line.ends_with(RESET)));
        assert_eq!(scan(&coloured.replace(BLACK_ON_WHITE, "").replace(RESET, ""), 0), CONF);
        assert!(plain.lines().next().unwrap().chars().count() <= 90, "it fits a usual terminal");
    }

    #[test]
    fn a_text_that_is_too_long_is_a_problem() {
        assert!(draw(&"x".repeat(5000), false).is_err());
    }
}
