//! Tokens to operators.

use pullback_tensor::c64;

use super::local::Local;
use super::token::{Kind, Token, error, tokens};
use crate::dense::{self, I, Matrix, ZERO, identity, kron};
use crate::error::ChainError;
use crate::site::Site;

const FUNCTIONS: [&str; 4] = ["exp", "sqrt", "sin", "cos"];

/// Nesting beyond which an expression is refused, so that reading it cannot exhaust the stack.
const DEPTH: usize = 64;

/// Reads an expression of operators on `site`s.
///
/// # Errors
/// The text is no expression; the error points at the character.
pub fn parse_operator(text: &str, site: Site) -> Result<Local, ChainError> {
    let mut parser = Parser {
        text,
        tokens: tokens(text)?,
        next: 0,
        site: Some(site),
        depth: 0,
    };
    parser.whole()
}

/// Reads a real number: `0.3`, `pi/4`, `sqrt(2)`.
///
/// # Errors
/// The text is no expression of numbers, or its value is not real and finite.
pub fn parse_scalar(text: &str) -> Result<f64, ChainError> {
    let mut parser = Parser {
        text,
        tokens: tokens(text)?,
        next: 0,
        site: None,
        depth: 0,
    };
    let value = parser.whole()?.constant;
    if value.im == 0.0 && value.re.is_finite() {
        Ok(value.re)
    } else {
        Err(error(
            text,
            0,
            format!("its value is {value}: a real number is needed"),
        ))
    }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    next: usize,
    /// Without one, only numbers are allowed.
    site: Option<Site>,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.next]
    }

    fn is_sign(&self, signs: &str) -> Option<char> {
        match self.peek().kind {
            Kind::Sign(c) if signs.contains(c) => Some(c),
            _ => None,
        }
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].clone();
        if token.kind != Kind::End {
            self.next += 1;
        }
        token
    }

    fn error(&self, at: usize, message: impl Into<String>) -> ChainError {
        error(self.text, at, message)
    }

    fn whole(&mut self) -> Result<Local, ChainError> {
        let value = self.sum()?;
        let token = self.peek().clone();
        match token.kind {
            Kind::End => {}
            Kind::Sign(')') => return Err(self.error(token.at, "this parenthesis closes nothing")),
            _ => return Err(self.missing_sign(token.at)),
        }
        let finite = |a: &Option<Matrix>| a.as_ref().is_none_or(|a| a.norm_l2().is_finite());
        if !value.constant.is_finite() || !finite(&value.one) || !finite(&value.two) {
            return Err(self.error(0, "its value is not finite"));
        }
        Ok(value)
    }

    fn missing_sign(&self, at: usize) -> ChainError {
        self.error(
            at,
            "a sign such as * or + is missing before this (a two-site term is two names written together, as ZZ)",
        )
    }

    fn sum(&mut self) -> Result<Local, ChainError> {
        self.depth += 1;
        if self.depth > DEPTH {
            let at = self.peek().at;
            return Err(self.error(at, format!("more than {DEPTH} levels of parentheses")));
        }
        let mut value = self.product()?;
        while let Some(sign) = self.is_sign("+-") {
            self.take();
            let other = self.product()?;
            let factor = if sign == '+' { 1.0 } else { -1.0 };
            value = value.plus(other.times(c64::new(factor, 0.0)));
        }
        self.depth -= 1;
        Ok(value)
    }

    fn product(&mut self) -> Result<Local, ChainError> {
        let mut after_number = matches!(self.peek().kind, Kind::Number(_));
        let mut value = self.factor()?;
        loop {
            let token = self.peek().clone();
            if let Some(sign) = self.is_sign("*/") {
                self.take();
                after_number = matches!(self.peek().kind, Kind::Number(_));
                let other = self.factor()?;
                value = if sign == '*' {
                    self.multiply(&value, &other, token.at)?
                } else {
                    self.divide(&value, &other, token.at)?
                };
            } else if matches!(
                token.kind,
                Kind::Word(_) | Kind::Sign('(') | Kind::Number(_)
            ) {
                if !after_number || matches!(token.kind, Kind::Number(_)) {
                    return Err(self.missing_sign(token.at));
                }
                after_number = false;
                let other = self.factor()?;
                value = self.multiply(&value, &other, token.at)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn factor(&mut self) -> Result<Local, ChainError> {
        // A run of signs is a loop and not a recursion: there may be many.
        let mut sign = 1.0;
        while let Some(c) = self.is_sign("+-") {
            self.take();
            if c == '-' {
                sign = -sign;
            }
        }
        let value = self.atom()?;
        let value = self.power(value)?;
        Ok(if sign < 0.0 {
            value.times(c64::new(-1.0, 0.0))
        } else {
            value
        })
    }

    fn power(&mut self, base: Local) -> Result<Local, ChainError> {
        if self.is_sign("^").is_none() {
            return Ok(base);
        }
        let sign = self.take();
        let exponent = self.take();
        let Kind::Number(n) = exponent.kind else {
            return Err(self.error(exponent.at, "an exponent is a whole number from 0 to 16"));
        };
        if n.fract() != 0.0 || !(0.0..=16.0).contains(&n) {
            return Err(self.error(exponent.at, "an exponent is a whole number from 0 to 16"));
        }
        let mut value = Local::number(c64::new(1.0, 0.0));
        for _ in 0..n as usize {
            value = self.multiply(&value, &base, sign.at)?;
        }
        Ok(value)
    }

    fn atom(&mut self) -> Result<Local, ChainError> {
        let token = self.take();
        match token.kind {
            Kind::Number(x) => Ok(Local::number(c64::new(x, 0.0))),
            Kind::Word(word) => self.word(&word, token.at),
            Kind::Sign('(') => {
                let value = self.sum()?;
                self.close(token.at)?;
                Ok(value)
            }
            Kind::Sign(c) => Err(self.error(
                token.at,
                format!("a number or an operator is missing before `{c}`"),
            )),
            Kind::End => Err(self.error(
                token.at,
                "the expression ends where a number or an operator is needed",
            )),
        }
    }

    fn close(&mut self, opened: usize) -> Result<(), ChainError> {
        if self.is_sign(")").is_some() {
            self.take();
            return Ok(());
        }
        let token = self.peek().clone();
        if token.kind == Kind::End {
            Err(self.error(opened, "this parenthesis is never closed"))
        } else {
            Err(self.missing_sign(token.at))
        }
    }

    fn word(&mut self, word: &str, at: usize) -> Result<Local, ChainError> {
        match word {
            "i" => return Ok(Local::number(I)),
            "pi" => return Ok(Local::number(c64::new(std::f64::consts::PI, 0.0))),
            _ => {}
        }
        if FUNCTIONS.contains(&word) {
            let open = self.take();
            if open.kind != Kind::Sign('(') {
                return Err(self.error(
                    open.at,
                    format!("`{word}` needs its argument in parentheses"),
                ));
            }
            let start = self.peek().at;
            let argument = self.sum()?;
            self.close(open.at)?;
            return self.function(word, &argument, start);
        }
        self.operators(word, at)
    }

    fn function(&self, name: &str, argument: &Local, at: usize) -> Result<Local, ChainError> {
        if let Some(x) = argument.as_number() {
            return Ok(Local::number(match name {
                "exp" => x.exp(),
                "sqrt" => x.sqrt(),
                "sin" => x.sin(),
                _ => x.cos(),
            }));
        }
        if name != "exp" {
            return Err(self.error(
                at,
                format!("`{name}` takes numbers; of operators there is only exp"),
            ));
        }
        let d = self.site.map_or(2, Site::dimension);
        let of = |a: &Matrix| dense::exp(a).map_err(|e| self.error(at, e.to_string()));
        match argument.one_site(d) {
            Some(one) => Ok(Local::on_one(of(&one)?)),
            None => Ok(Local::on_two(of(&argument.bond(d))?)),
        }
    }

    /// One or two names written together.
    fn operators(&self, word: &str, at: usize) -> Result<Local, ChainError> {
        let Some(site) = self.site else {
            return Err(self.error(
                at,
                format!(
                    "`{word}` is no number: numbers, i, pi and the functions {} can be used here",
                    FUNCTIONS.join(", ")
                ),
            ));
        };
        let names = site.names();
        let mut found: Vec<Matrix> = Vec::new();
        let mut done = 0;
        while done < word.len() {
            let rest = &word[done..];
            let longest = names
                .iter()
                .filter(|name| rest.starts_with(name.as_str()))
                .max_by_key(|name| name.len());
            let Some(operator) = longest.and_then(|name| site.operator(name)) else {
                let pauli =
                    matches!(site, Site::Spin { twice: 2.. }) && rest.starts_with(['X', 'Y', 'Z']);
                let hint = if pauli {
                    " (X, Y and Z are Pauli matrices, of spin 1/2)"
                } else {
                    ""
                };
                return Err(self.error(
                    at + done,
                    format!(
                        "`{rest}` is no operator of {}{hint}: it has {}",
                        site.describe(),
                        names.join(", ")
                    ),
                ));
            };
            if found.len() == 2 {
                return Err(self.error(
                    at + done,
                    "a third operator: terms act on two neighbouring sites at most",
                ));
            }
            done += longest.map_or(1, String::len);
            found.push(operator);
        }
        Ok(match found.as_slice() {
            [a, b] => Local::on_two(kron(a, b)),
            [a] => Local::on_one(a.clone()),
            _ => Local::number(ZERO),
        })
    }

    fn multiply(&self, a: &Local, b: &Local, at: usize) -> Result<Local, ChainError> {
        if let Some(x) = a.as_number() {
            return Ok(b.times(x));
        }
        if let Some(x) = b.as_number() {
            return Ok(a.times(x));
        }
        let d = self.site.map_or(2, Site::dimension);
        if let (Some(a), Some(b)) = (a.one_site(d), b.one_site(d)) {
            return Ok(Local::on_one(a * b));
        }
        let both = |x: &Local| match (&x.one, &x.two) {
            (None, Some(two)) => Some(two + dense::scaled(&identity(d * d), x.constant)),
            _ => None,
        };
        if let (Some(a), Some(b)) = (both(a), both(b)) {
            return Ok(Local::on_two(a * b));
        }
        Err(self.error(
            at,
            "a one-site operator times a two-site one: say on which site it acts, as XI or IX",
        ))
    }

    fn divide(&self, a: &Local, b: &Local, at: usize) -> Result<Local, ChainError> {
        match b.as_number() {
            Some(x) if x == ZERO => Err(self.error(at, "division by zero")),
            Some(x) => Ok(a.times(c64::new(1.0, 0.0) / x)),
            None => Err(self.error(at, "division by an operator")),
        }
    }
}
