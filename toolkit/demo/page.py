"""The page in one language: header, tabs, theme."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font, LocalFont

from toolkit.demo import parts, tab_compare, tab_greet, tab_judge, tab_runs, tab_train, tab_write
from toolkit.demo.house import House
from toolkit.demo.words import LANGUAGES, Words

TABS = {
    "write": tab_write,
    "compare": tab_compare,
    "judge": tab_judge,
    "runs": tab_runs,
    "train": tab_train,
    "greet": tab_greet,
}
HERE = Path(__file__).parent


def page(house: House, language: str) -> gr.Blocks:
    """Everything a person sees at /en/ or /zh/."""
    w = Words(language)
    other = next(x for x in LANGUAGES if x != language)
    with gr.Blocks(title="Fablesmith", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_header(w, other), elem_id="top")
        chosen = []
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            for name, tab in TABS.items():
                with gr.Tab(w(f"tab.{name}"), id=name) as opening:
                    built = tab.build(house, w)
                chosen += built.models
                if built.shown:
                    opening.select(*built.shown, **parts.AT_ONCE)

        def opened(request: gr.Request):
            """A page was opened: what is here now, and the model gets ready while the person thinks."""
            house.warm()
            names = list(house.writers())
            return [gr.update(choices=names) for _ in chosen]

        def left(request: gr.Request):
            house.desk.stop(request.session_hash)

        blocks.load(opened, None, chosen, **parts.AT_ONCE)
        blocks.unload(left)
        for event in blocks.fns.values():  # a page, not an API: its description would be made anew at each visit
            event.api_visibility = "private"
    return blocks


def _header(w: Words, other: str) -> str:
    return (
        f"<header class='top'><div><h1>{parts.esc(w('title'))}</h1><p>{parts.esc(w('tagline'))}</p></div>"
        f"<nav aria-label='Fablesmith'><button type='button' id='theme' aria-label='{parts.esc(w('theme'))}' title='{parts.esc(w('theme'))}'>◐</button>"
        f"<a href='../{other}/' lang='{other}' hreflang='{other}'>{parts.esc(w('other_language'))}</a></nav></header>"
    )


def theme() -> gr.themes.Base:
    """Paper and ink, one colour. Fonts are gradio's bundled files and the system's; its files of half-bold weights lack letters."""
    sans = [
        LocalFont("IBM Plex Sans", weights=(400, 700)),
        Font("system-ui"),
        Font("PingFang SC"),
        Font("Microsoft YaHei"),
        Font("Noto Sans CJK SC"),
        Font("sans-serif"),
    ]
    mono = [LocalFont("IBM Plex Mono", weights=(400, 700)), Font("monospace")]
    ink = gr.themes.Color(
        "#faf9f6",
        "#f3f1ec",
        "#e6e2da",
        "#d3cdc2",
        "#a8a196",
        "#7d766b",
        "#5c564d",
        "#423d36",
        "#2b2824",
        "#1d1b18",
        "#141210",
    )
    rust = gr.themes.Color(
        "#fbf3ec",
        "#f6e3d4",
        "#edc7a9",
        "#e2a679",
        "#d58450",
        "#b9602c",
        "#a24f1f",
        "#84401a",
        "#693417",
        "#4d2712",
        "#2e170b",
    )
    base = gr.themes.Base(
        primary_hue=rust,
        secondary_hue=ink,
        neutral_hue=ink,
        font=sans,
        font_mono=mono,
        radius_size="md",
        text_size="md",
    )
    return base.set(
        body_background_fill="#fbfaf7",
        body_background_fill_dark="#171512",
        body_text_color="#24211d",
        body_text_color_dark="#ebe6dd",
        body_text_color_subdued="#6b655b",
        body_text_color_subdued_dark="#a39b8e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1f1c18",
        background_fill_secondary="#f5f3ee",
        background_fill_secondary_dark="#1b1815",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="400",
        block_title_text_size="0.875rem",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_info_text_size="0.8125rem",
        border_color_primary="#e3dfd6",
        border_color_primary_dark="#38332c",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1f1c18",
        input_border_color="#d9d4ca",
        input_border_color_dark="#423c34",
        input_border_color_focus="#b9602c",
        input_border_color_focus_dark="#d58450",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_shadow="none",
        input_shadow_dark="none",
        button_primary_background_fill="#a24f1f",
        button_primary_background_fill_hover="#8b4319",
        button_primary_background_fill_dark="#c9713b",
        button_primary_background_fill_hover_dark="#d58450",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#1a120c",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="#f0ece4",
        button_secondary_background_fill_hover_dark="#2a2621",
        button_secondary_border_color="#d3cdc2",
        button_secondary_border_color_dark="#4a433a",
        color_accent_soft="#f6e3d4",
        color_accent_soft_dark="#3a2719",
    )


def looks() -> dict:
    """Style, script and theme for `gr.mount_gradio_app`."""
    return {
        "theme": theme(),
        "css": (HERE / "style.css").read_text(encoding="utf-8"),
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
    }
