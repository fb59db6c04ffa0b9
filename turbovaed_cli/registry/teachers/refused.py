"""VAE classes of diffusers that cannot be teachers yet, each with the reason and with what would be needed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """The reason why a class cannot be a teacher, and what would be needed."""

    why: str
    needed: str


REFUSED: dict[str, Refused] = {
    "AutoencoderKLMochi": Refused(
        "it compresses time by 6 = 2 x 3, and a student's blocks upsample time by 2 only",
        "needed: a student block that upsamples time by 3",
    ),
    "AutoencoderKLAllegro": Refused(
        "the class encodes and decodes in overlapping tiles of 24 frames only, and blends them, so no decode shows a whole clip",
        "needed: a diffusers class that decodes without tiles",
    ),
    "AutoencoderKLMagvit": Refused(
        "after any error the class keeps a filled cache, and every later encode of that object fails",
        "needed: a class that clears its cache when a call fails",
    ),
    "AutoencoderKLMiniMaxH3": Refused(
        "its decoder is a vision transformer over tiles: 5n+2 latent frames stand for 17n+5 frames, which is no fixed ratio",
        "needed: a student that is no pyramid of upsamplings, and features of tokens",
    ),
    "AutoencoderVidTok": Refused(
        "no length of a clip comes back from its encode and decode unchanged",
        "needed: a diffusers class whose causal decode returns the frames that were encoded",
    ),
    "LTX2VideoDiffusionDecoderModel": Refused(
        "it is a decoder alone, without the encoder of its latents",
        "needed: the folder of the pipeline, which holds vae/ and diffusion_decoder/",
    ),
    "SeedVR2VideoVAE": Refused(
        "diffusers has no class for it",
        "needed: the class in diffusers, or a package with the entry point turbovaed.teachers",
    ),
}
