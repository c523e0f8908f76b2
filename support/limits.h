/* limits: the ceilings that several folders share. A number from outside meets one of these before
 * memory or disk does. */
#pragma once

#define CB_CONFIG_MAX (1u << 20) /* an onboard.yaml or settings file, bytes */
#define CB_JSON_MAX                                                                                \
    (4u << 20)                    /* a manifest, index or image config: the size that the          \
                                     distribution specification asks registries to accept */
#define CB_PATH_MAX 4096u         /* a path inside an image, bytes (Linux PATH_MAX) */
#define CB_NAME_MAX 255u          /* one component (Linux NAME_MAX) */
#define CB_LAYERS_MAX 1024u       /* layers of one image */
#define CB_EVENT_MAX (256u << 10) /* one event's payload, bytes */
